//go:build race

package cage

const underRace = true // the race detector reserves more data than the test allows

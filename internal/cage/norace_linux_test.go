//go:build !race

package cage

const underRace = false

package cage

const sysVfork = 220 // it has only clone; this asks for one without flags

package cage

const sysVfork = 58

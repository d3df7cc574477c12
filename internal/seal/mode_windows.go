package seal

// modesTell is false: Windows has access lists; a profile folder is its user's only.
const modesTell = false

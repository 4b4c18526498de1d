package elastic

import "time"

// DeleteMemory is how long an index of this sink remembers the version of a
// deleted document while its node runs.
const DeleteMemory = time.Hour

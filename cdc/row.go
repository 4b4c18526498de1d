package cdc

// Row is a row of a table as it is in the source, and its key, as in Change.After and
// Change.Key. Row is nil for a key without one.
type Row struct{ Key, Row []byte }

package cdc

import "strconv"

// DecodeHeaders reads back what the headers of a record tell of a change: all but
// its images and its origin. It is for looking through many records; it refuses what
// has no valid version, operation or table with an error that wraps ErrUndecodable.
func DecodeHeaders(key []byte, headers []Header) (Change, error) {
	c := Change{Key: key}
	var versionErr error = ErrNoVersion
	for _, h := range headers {
		switch h.Key {
		case HeaderVersion:
			c.Version, versionErr = ParseVersion(string(h.Value))
		case HeaderOp:
			if len(h.Value) == 1 {
				c.Op = Op(h.Value[0])
			}
		case HeaderDB:
			c.Table.DB = string(h.Value)
		case HeaderTable:
			c.Table.Table = string(h.Value)
		case HeaderGTID:
			c.GTID = string(h.Value)
		case HeaderCommit:
			c.CommitMicros, _ = strconv.ParseInt(string(h.Value), 10, 64)
		}
	}
	switch {
	case versionErr != nil:
		return c, undecodable("header %s: %v", HeaderVersion, versionErr)
	case !c.Op.Valid():
		return c, undecodable("header %s is no operation", HeaderOp)
	case c.Table.DB == "" || c.Table.Table == "":
		return c, undecodable("headers %s and %s do not name a table", HeaderDB, HeaderTable)
	}
	return c, nil
}

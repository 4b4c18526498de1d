package cdc

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/tidwall/gjson"
)

// Header is a Kafka record header.
type Header struct {
	Key   string
	Value []byte
}

// The headers carry what a worker needs before it opens the value.
const (
	HeaderFormat  = "lockstep.format"
	HeaderVersion = "lockstep.version"
	HeaderOp      = "lockstep.op"
	HeaderDB      = "lockstep.db"
	HeaderTable   = "lockstep.table"
	HeaderGTID    = "lockstep.gtid"
	HeaderCommit  = "lockstep.commit_us"
)

// Format is the format number of the records that Headers and AppendValue write.
const Format = 1

// ErrUndecodable is wrapped by every error of Decode.
var ErrUndecodable = errors.New("not a change record of this pipeline")

var formatValue = []byte(strconv.Itoa(Format))

// Headers returns the record headers of c.
func (c *Change) Headers() []Header {
	h := make([]Header, 0, 7)
	h = append(h,
		Header{HeaderFormat, formatValue},
		Header{HeaderVersion, strconv.AppendUint(nil, uint64(c.Version), 10)},
		Header{HeaderOp, []byte{byte(c.Op)}},
		Header{HeaderDB, []byte(c.Table.DB)},
		Header{HeaderTable, []byte(c.Table.Table)},
	)
	if c.GTID != "" {
		h = append(h, Header{HeaderGTID, []byte(c.GTID)})
	}
	if c.CommitMicros != 0 {
		h = append(h, Header{HeaderCommit, strconv.AppendInt(nil, c.CommitMicros, 10)})
	}
	return h
}

// AppendValue appends the record value of c to dst: the JSON envelope of
// Debezium with before, after, source, op and ts_ms. Name is the pipeline's
// prefix.
func (c *Change) AppendValue(dst []byte, name string) []byte {
	dst = append(dst, `{"before":`...)
	dst = appendImage(dst, c.Before)
	dst = append(dst, `,"after":`...)
	dst = appendImage(dst, c.After)
	dst = append(dst, `,"source":{"connector":"mysql","name":`...)
	dst = AppendString(dst, name)
	dst = append(dst, `,"db":`...)
	dst = AppendString(dst, c.Table.DB)
	dst = append(dst, `,"table":`...)
	dst = AppendString(dst, c.Table.Table)
	dst = append(dst, `,"snapshot":`...)
	dst = strconv.AppendBool(dst, c.Op == OpRead)
	dst = append(dst, `,"server_id":`...)
	dst = strconv.AppendUint(dst, uint64(c.Origin.ServerID), 10)
	dst = append(dst, `,"gtid":`...)
	if c.GTID == "" {
		dst = append(dst, "null"...)
	} else {
		dst = AppendString(dst, c.GTID)
	}
	dst = append(dst, `,"file":`...)
	dst = AppendString(dst, c.Origin.File)
	dst = append(dst, `,"pos":`...)
	dst = strconv.AppendUint(dst, uint64(c.Origin.Pos), 10)
	dst = append(dst, `,"row":`...)
	dst = strconv.AppendInt(dst, int64(c.Origin.Row), 10)
	dst = append(dst, `,"ts_us":`...)
	dst = strconv.AppendInt(dst, c.CommitMicros, 10)
	dst = append(dst, `,"version":`...)
	dst = strconv.AppendUint(dst, uint64(c.Version), 10)
	dst = append(dst, `},"op":"`...)
	dst = append(dst, byte(c.Op))
	dst = append(dst, `","ts_ms":`...)
	dst = strconv.AppendInt(dst, c.CommitMicros/1000, 10)
	return append(dst, '}')
}

func appendImage(dst, image []byte) []byte {
	if image == nil {
		return append(dst, "null"...)
	}
	return append(dst, image...)
}

// Decode reads a record back. The images of the result are parts of value. A
// barrier has neither key nor images: its record is Debezium's truncate. A record that was not written by this format, has no valid version, or is not
// whole, is refused with an error that wraps ErrUndecodable and names what is
// wrong.
func Decode(key, value []byte, headers []Header) (Change, error) {
	var c Change
	format := ""
	var versionErr error = ErrNoVersion
	for _, h := range headers {
		switch h.Key {
		case HeaderFormat:
			format = string(h.Value)
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
			n, err := strconv.ParseInt(string(h.Value), 10, 64)
			if err != nil {
				return c, undecodable("header %s is %q, not a number", h.Key, h.Value)
			}
			c.CommitMicros = n
		}
	}
	switch {
	case format == "":
		return c, undecodable("header %s is missing", HeaderFormat)
	case format != string(formatValue):
		return c, undecodable("format %q is not known, only %d is", format, Format)
	case versionErr != nil:
		return c, undecodable("header %s: %v", HeaderVersion, versionErr)
	case !c.Op.Valid():
		return c, undecodable("header %s is not one of c, u, d, r, t", HeaderOp)
	case c.Table.DB == "" || c.Table.Table == "":
		return c, undecodable("headers %s and %s do not name a table", HeaderDB, HeaderTable)
	case !isObject(value):
		return c, undecodable("value is not a JSON object")
	case c.Op == OpBarrier && len(key) > 0:
		return c, undecodable("op t is of a table and has a key")
	case c.Op == OpBarrier:
		return c, nil
	case !isObject(key):
		return c, undecodable("key is not a JSON object")
	}
	c.Key = key
	images := gjson.GetManyBytes(value, "before", "after")
	c.Before, c.After = image(images[0]), image(images[1])
	if c.Op != OpDelete && c.After == nil {
		return c, undecodable("op %s has no row in after", c.Op)
	}
	if c.Op == OpDelete && c.After != nil {
		return c, undecodable("op d has a row in after")
	}
	return c, nil
}

func isObject(b []byte) bool {
	return len(b) > 0 && b[0] == '{' && gjson.ValidBytes(b)
}

func image(r gjson.Result) []byte {
	if !r.IsObject() {
		return nil
	}
	return []byte(r.Raw)
}

func undecodable(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUndecodable, fmt.Sprintf(format, args...))
}

package cdc

import (
	"encoding/json"
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
	HeaderLayout  = "lockstep.layout"
	HeaderGrowth  = "lockstep.growth" // JSON of a Growth
)

// Format is the format number of the records that an Encoder writes.
const Format = 1

// ErrUndecodable is wrapped by every error of Decode but ErrNewer.
var ErrUndecodable = errors.New("not a change record of this pipeline")

// ErrNewer is wrapped by the error for a record that a later version of this program has
// written, in a format that this one does not know.
var ErrNewer = errors.New("written by a newer lockstep")

var formatValue = []byte(strconv.Itoa(Format))

// Encoder writes the changes of one table as records. It allocates nothing once it
// is warm: what it hands out is good until the next change.
type Encoder struct {
	change  *Change
	before  []byte // of change, unless it is left out
	head    []byte // of source, the same in every record of the table
	tail    []byte // of the value, from source on
	headers []Header
	// The values of the headers.
	version, gtid, commit, layout, trace []byte
	op                                   [1]byte
}

// NewEncoder makes an encoder for a table. Name is the pipeline's prefix.
func NewEncoder(name string, t TableName) *Encoder {
	head := append([]byte(nil), `,"source":{"connector":"mysql","name":`...)
	head = AppendString(head, name)
	head = append(head, `,"db":`...)
	head = AppendString(head, t.DB)
	head = append(head, `,"table":`...)
	head = AppendString(head, t.Table)
	head = append(head, `,"snapshot":`...)
	return &Encoder{head: head, headers: []Header{
		{Key: HeaderFormat, Value: formatValue},
		{Key: HeaderVersion},
		{Key: HeaderOp},
		{Key: HeaderDB, Value: []byte(t.DB)},
		{Key: HeaderTable, Value: []byte(t.Table)},
	}}
}

// Set turns to c, which must be a change of the encoder's table and must not be
// changed while the encoder is asked about it.
func (e *Encoder) Set(c *Change) {
	e.change, e.before = c, c.Before
	e.version = strconv.AppendUint(e.version[:0], uint64(c.Version), 10)
	e.op[0] = byte(c.Op)
	e.headers[1].Value, e.headers[2].Value = e.version, e.op[:]
	e.headers = e.headers[:5]
	if c.GTID != "" {
		e.gtid = append(e.gtid[:0], c.GTID...)
		e.headers = append(e.headers, Header{HeaderGTID, e.gtid})
	}
	if c.CommitMicros != 0 {
		e.commit = strconv.AppendInt(e.commit[:0], c.CommitMicros, 10)
		e.headers = append(e.headers, Header{HeaderCommit, e.commit})
	}
	if c.Layout != 0 {
		e.layout = strconv.AppendUint(e.layout[:0], uint64(c.Layout), 16)
		e.headers = append(e.headers, Header{HeaderLayout, e.layout})
	}
	if c.Trace.Traced() {
		e.trace = c.Trace.appendTo(e.trace[:0])
		e.headers = append(e.headers, Header{HeaderTrace, e.trace})
	}
	if c.Growth != nil {
		growth, _ := json.Marshal(c.Growth) // numbers alone
		e.headers = append(e.headers, Header{HeaderGrowth, growth})
	}

	dst := append(e.tail[:0], e.head...)
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
	dst = append(dst, e.version...)
	dst = append(dst, `},"op":"`...)
	dst = append(dst, byte(c.Op))
	dst = append(dst, `","ts_ms":`...)
	dst = strconv.AppendInt(dst, c.CommitMicros/1000, 10)
	e.tail = append(dst, '}')
}

// SmallValue is how many bytes of JSON a column has at most that stays in a row before
// which is trimmed. Whatever names a row's place in a store is smaller.
const SmallValue = 1024

// TrimBefore leaves the columns with large values out of the row before, so that the
// record needs little more room than the row after does.
func (e *Encoder) TrimBefore() {
	small := []byte{'{'}
	gjson.ParseBytes(e.change.Before).ForEach(func(name, value gjson.Result) bool {
		if len(value.Raw) > SmallValue {
			return true
		}
		if len(small) > 1 {
			small = append(small, ',')
		}
		small = append(append(append(small, name.Raw...), ':'), value.Raw...)
		return true
	})
	e.before = append(small, '}')
}

// Done lets go of the change.
func (e *Encoder) Done() { e.change, e.before = nil, nil }

// Headers are the record headers.
func (e *Encoder) Headers() []Header { return e.headers }

const (
	beforeField = `{"before":`
	afterField  = `,"after":`
)

// ValueLen is the length of the record value.
func (e *Encoder) ValueLen() int {
	return len(beforeField) + imageLen(e.before) + len(afterField) + imageLen(e.change.After) + len(e.tail)
}

// AppendValue appends the record value: the JSON envelope of Debezium with before,
// after, source, op and ts_ms.
func (e *Encoder) AppendValue(dst []byte) []byte {
	dst = append(dst, beforeField...)
	dst = appendImage(dst, e.before)
	dst = append(dst, afterField...)
	dst = appendImage(dst, e.change.After)
	return append(dst, e.tail...)
}

const noImage = "null"

func imageLen(image []byte) int {
	if image == nil {
		return len(noImage)
	}
	return len(image)
}

func appendImage(dst, image []byte) []byte {
	if image == nil {
		return append(dst, noImage...)
	}
	return append(dst, image...)
}

// Headers returns the record headers of c.
func (c *Change) Headers() []Header {
	e := NewEncoder("", c.Table)
	e.Set(c)
	return e.Headers()
}

// AppendValue appends the record value of c to dst. Name is the pipeline's prefix.
func (c *Change) AppendValue(dst []byte, name string) []byte {
	e := NewEncoder(name, c.Table)
	e.Set(c)
	return e.AppendValue(dst)
}

// DecodeHeaders reads back what the headers of a record tell of a change: all but
// its images and its origin. It refuses what Decode refuses, as far as the headers
// show it. The texts of the result are parts of the headers' values.
func DecodeHeaders(key []byte, headers []Header) (Change, error) {
	c := Change{Key: key}
	format := ""
	var versionErr error = ErrNoVersion
	for _, h := range headers {
		switch h.Key {
		case HeaderFormat:
			format = View(h.Value)
		case HeaderVersion:
			c.Version, versionErr = ParseVersion(View(h.Value))
		case HeaderOp:
			if len(h.Value) == 1 {
				c.Op = Op(h.Value[0])
			}
		case HeaderDB:
			c.Table.DB = View(h.Value)
		case HeaderTable:
			c.Table.Table = View(h.Value)
		case HeaderGTID:
			c.GTID = View(h.Value)
		case HeaderCommit:
			n, err := strconv.ParseInt(View(h.Value), 10, 64)
			if err != nil {
				return c, undecodable("header %s is %q, not a number", h.Key, h.Value)
			}
			c.CommitMicros = n
		case HeaderLayout:
			n, err := strconv.ParseUint(View(h.Value), 16, 32)
			if err != nil {
				return c, undecodable("header %s is %q, not hexadecimal", h.Key, h.Value)
			}
			c.Layout = uint32(n)
		case HeaderTrace: // a strange one is nobody's loss
			c.Trace = ParseTrace(h.Value)
		case HeaderGrowth:
			if err := json.Unmarshal(h.Value, &c.Growth); err != nil {
				return c, undecodable("header %s is %q: %v", h.Key, h.Value, err)
			}
		}
	}
	switch {
	case format == "":
		return c, undecodable("header %s is missing", HeaderFormat)
	case newer(format):
		return c, fmt.Errorf("%w: the record has format %s, and this one knows up to %d; run a lockstep that is at least as new as the one that wrote it", ErrNewer, format, Format)
	case format != string(formatValue):
		return c, undecodable("format %q is not known, only %d is", format, Format)
	case versionErr != nil:
		return c, undecodable("header %s: %v", HeaderVersion, versionErr)
	case !c.Op.Valid():
		return c, undecodable("header %s is not one of c, u, d, r, t, g", HeaderOp)
	case c.Table.DB == "" || c.Table.Table == "":
		return c, undecodable("headers %s and %s do not name a table", HeaderDB, HeaderTable)
	case (c.Op == OpGrowth) != (c.Growth != nil) || c.Growth != nil && c.Growth.Partitions < 1:
		return c, undecodable("op %s does not go with what header %s says", c.Op, HeaderGrowth)
	}
	return c, nil
}

// newer reports whether a format number is one of the future.
func newer(format string) bool {
	n, err := strconv.ParseUint(format, 10, 16)
	return err == nil && n > Format
}

// Decode reads a record back. The images of the result are parts of value, and its texts
// of the headers' values. A barrier has neither key nor images: its record is Debezium's
// truncate. Neither has a growth, which Debezium does not know. A record
// that was not written by this format, has no valid version, or is not whole, is
// refused with an error that wraps ErrUndecodable, or ErrNewer, and names what is wrong.
func Decode(key, value []byte, headers []Header) (Change, error) {
	c, err := DecodeHeaders(nil, headers)
	switch {
	case err != nil:
		return c, err
	case !isObject(value):
		return c, undecodable("value is not a JSON object")
	case c.Op.OfTable() && len(key) > 0:
		return c, undecodable("op %s is of a table and has a key", c.Op)
	case c.Op.OfTable():
		return c, nil
	case !isObject(key):
		return c, undecodable("key is not a JSON object")
	}
	c.Key = key
	gjson.Parse(View(value)).ForEach(func(name, field gjson.Result) bool {
		switch name.Str {
		case "before":
			c.Before = image(field)
		case "after":
			c.After = image(field)
			return false // nothing behind it is asked for
		}
		return true
	})
	if c.Op != OpDelete && c.After == nil {
		return c, undecodable("op %s has no row in after", c.Op)
	}
	if c.Op == OpDelete && c.After != nil {
		return c, undecodable("op d has a row in after")
	}
	return c, nil
}

func isObject(b []byte) bool {
	return len(b) > 0 && b[0] == '{' && Valid(b)
}

func image(r gjson.Result) []byte {
	if !r.IsObject() {
		return nil
	}
	return viewed(r.Raw)
}

func undecodable(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUndecodable, fmt.Sprintf(format, args...))
}

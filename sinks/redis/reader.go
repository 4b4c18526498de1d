package redis

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

// readRows is how many rows are asked for at once.
const readRows = 100

// reading is a row that is looked at.
type reading struct {
	i      int // of the change
	target *target
	keys   []string
	member string
	most   int // bytes of its value that are wanted

	version cdc.Version
	there   bool
	wrong   error // the key holds something of another type
	size    int
	value   []string
	err     error // it could not be looked at
}

// Stored is sinks.Reader.Stored. The document of a hash has texts, that of a string is a
// text, that of a set has member and of a sorted set score; what is only invalidated has
// none.
func (s *Sink) Stored(ctx context.Context, changes []cdc.Change, most int) []sinks.Stored {
	out := make([]sinks.Stored, len(changes))
	var all []*reading
	for i := range changes {
		c := &changes[i]
		t, err := s.target(c.Table)
		var at place
		var null string
		switch {
		case err != nil:
		case t == nil:
			err = errors.New("the sink does not take this table")
		case c.Op == cdc.OpDelete:
			at, null, _, err = t.place(c, c.Before)
		default:
			at, null, _, err = t.place(c, bytes.TrimSpace(c.After))
		}
		if err == nil && null == "" {
			var no *sinks.Outcome
			r := &reading{i: i, target: t, member: at.member}
			if r.keys, no = s.keysOf(t, at.key); no != nil {
				out[i].Problem = no.Reason
				continue
			}
			out[i].Place = map[string]string{"key": at.key}
			if at.member != "" {
				out[i].Place["member"] = at.member
			}
			all = append(all, r)
		} else if err != nil {
			out[i].Problem = err.Error()
		}
	}
	for some := range slices.Chunk(all, readRows) {
		for _, r := range some {
			r.most = max(0, most) / len(some)
		}
		s.read(ctx, some)
		for _, r := range some {
			if r.size > r.most && r.size <= most && r.err == nil { // there is room for it alone
				r.most = r.size
				s.read(ctx, []*reading{r})
			}
			o := &out[r.i]
			switch {
			case r.err != nil:
				o.Problem = r.err.Error()
			case r.wrong != nil:
				o.Problem = r.wrong.Error()
				o.Version = r.version
			default:
				o.Version, o.Deleted = r.version, !r.there && r.version > 0
				o.Omitted = r.there && r.size > r.most
				o.Document = r.document()
				most -= len(o.Document)
			}
		}
	}
	return out
}

// document is the value of a row as JSON.
func (r *reading) document() []byte {
	if !r.there || r.size > r.most {
		return nil
	}
	switch r.target.cfg.Mode {
	case ModeHash:
		return textsJSON(r.value)
	case ModeJSON:
		return withoutVersion(r.value[0])
	case ModeString:
		return cdc.AppendString(nil, strings.ToValidUTF8(r.value[0], "\uFFFD"))
	case ModeStream:
		return []byte(r.value[0])
	case ModeSet:
		return textsJSON([]string{"member", r.member})
	case ModeZset:
		return textsJSON([]string{"member", r.member, "score", plainScore(r.value[0])})
	}
	return nil
}

// textsJSON is an object of names and texts in turn, without the version's field.
func textsJSON(texts []string) []byte {
	b := []byte{'{'}
	for i := 0; i+1 < len(texts); i += 2 {
		if texts[i] == versionField {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(cdc.AppendString(b, strings.ToValidUTF8(texts[i], "\uFFFD")), ':')
		b = cdc.AppendString(b, strings.ToValidUTF8(texts[i+1], "\uFFFD"))
	}
	return append(b, '}')
}

// withoutVersion is a JSON row without the version at its end.
func withoutVersion(text string) []byte {
	if i := strings.LastIndex(text, `,"`+jsonField+`":{"v":`); i > 0 {
		text = text[:i] + "}"
	}
	if !gjson.Valid(text) { // somebody else wrote it
		return cdc.AppendString(nil, strings.ToValidUTF8(text, "\uFFFD"))
	}
	return []byte(text)
}

// plainScore writes a score in one way.
func plainScore(text string) string {
	if f, err := strconv.ParseFloat(text, 64); err == nil {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return text
}

// read looks at rows in one pipeline.
func (s *Sink) read(ctx context.Context, rows []*reading) {
	forgotten := s.readOnce(ctx, rows)
	if len(forgotten) == 0 {
		return
	}
	err := s.Probe(ctx) // which loads the scripts again
	if err == nil {
		forgotten = s.readOnce(ctx, forgotten)
		err = errors.New("the scripts are forgotten again and again")
	}
	for _, r := range forgotten {
		r.err = err
	}
}

func (s *Sink) readOnce(ctx context.Context, rows []*reading) (forgotten []*reading) {
	pipe := s.client.Pipeline()
	cmds := make([]*goredis.Cmd, len(rows))
	for i, r := range rows {
		args := []any{"evalsha", r.target.verbs.read.digest, len(r.keys)}
		for _, key := range r.keys {
			args = append(args, key)
		}
		cmds[i] = goredis.NewCmd(ctx, append(args, r.most, "", r.member)...)
		if err := pipe.Process(ctx, cmds[i]); err != nil {
			panic("redis: queue a command: " + err.Error())
		}
	}
	_, execErr := pipe.Exec(ctx)
	for i, cmd := range cmds {
		r := rows[i]
		r.err, r.wrong = nil, nil
		answer, err := cmd.Slice()
		switch {
		case err != nil && cmd.Err() == nil && execErr != nil:
			r.err = execErr
		case code(err) == "NOSCRIPT":
			forgotten = append(forgotten, r)
		case code(err) == "WRONGTYPE":
			r.wrong = err
		case err != nil:
			r.err = err
		default:
			r.err = r.take(answer)
		}
	}
	return forgotten
}

// take reads the answer of a script.
func (r *reading) take(answer []any) error {
	bad := errors.New("the server answers to a script of ours in a way that is not known")
	if len(answer) != 4 {
		return bad
	}
	version, _ := answer[0].(string)
	v, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return bad
	}
	r.version = cdc.Version(v)
	switch there := answer[1].(type) {
	case int64:
		r.there = there == 1
	case string:
		r.wrong = errors.New(there)
	}
	size, _ := answer[2].(int64)
	values, _ := answer[3].([]any)
	r.size, r.value = int(size), r.value[:0]
	for _, v := range values {
		text, _ := v.(string)
		r.value = append(r.value, text)
	}
	return nil
}

// Would is sinks.Reader.Would.
func (s *Sink) Would(ctx context.Context, changes []cdc.Change) []sinks.Prospect {
	out := make([]sinks.Prospect, len(changes))
	a := attempt{Sink: s, scratch: new(scratch)}
	var rows []*reading
	for i := range changes {
		c := &changes[i]
		t, _ := s.target(c.Table) // encode says what is wrong with it
		if t != nil && c.Op != cdc.OpDelete {
			out[i].Document = t.document(c)
		}
		calls, no := a.encode(c, nil)
		if no != nil && no.Unasked {
			no = a.unfit(ctx, c.Table, no)
		}
		if no == nil {
			r := &reading{i: i, target: t}
			r.keys, r.member = calls[0].place(t)
			rows = append(rows, r)
		} else {
			out[i].Outcome = *no
		}
		a.args, a.texts = a.args[:0], a.texts[:0]
	}
	for some := range slices.Chunk(rows, readRows) {
		s.read(ctx, some)
	}
	full := s.full(ctx, rows)
	for i, r := range rows {
		o, c := &out[r.i].Outcome, &changes[r.i]
		switch {
		case r.err != nil:
			*o = classify(r.err)
			o.Verdict, o.Class = sinks.Unavailable, ""
		case r.version > 0 && r.version >= c.Version:
			o.Verdict = verdict(int64(r.version), c.Version)
		case r.wrong != nil:
			*o = sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassWrongType, Reason: r.wrong.Error()}
		case full[i] != "" && c.Op != cdc.OpDelete && r.target.cfg.Mode != ModeInvalidate:
			*o = sinks.Outcome{Verdict: sinks.Unavailable, Reason: full[i]}
		default:
			o.Verdict = sinks.Applied
		}
	}
	return out
}

// place is what a call is about.
func (c call) place(t *target) (keys []string, member string) {
	n := c.args[2].(int)
	for _, key := range c.args[3 : 3+n] {
		keys = append(keys, *key.(*string))
	}
	if t.cfg.sets() {
		member = c.args[3+n+2].(string)
	}
	return keys, member
}

// document is what the store has of a row that it has taken, as reading.document has it;
// nil for a row without a place.
func (t *target) document(c *cdc.Change) []byte {
	row := bytes.TrimSpace(c.After)
	at, null, _, err := t.place(c, row)
	if err != nil || null != "" {
		return nil
	}
	switch t.cfg.Mode {
	case ModeHash:
		texts, _ := fields(nil, row)
		return textsJSON(texts)
	case ModeJSON, ModeStream:
		return row
	case ModeString:
		text, err := t.value.Text(c.Table, c.Key, row)
		if err != nil {
			return nil
		}
		return cdc.AppendString(nil, text)
	case ModeSet:
		return textsJSON([]string{"member", at.member})
	case ModeZset:
		text, isNull, _ := cdc.ColumnText(row, t.cfg.Score)
		if number, ok := score(text); ok && !isNull {
			return textsJSON([]string{"member", at.member, "score", plainScore(number)})
		}
	}
	return nil
}

// full says of each row whether its server has no memory left for an upsert, and why.
func (s *Sink) full(ctx context.Context, rows []*reading) map[int]string {
	full := map[int]string{}
	servers := map[string]string{}
	for i, r := range rows {
		var server *goredis.Client
		var err error
		switch client := s.client.(type) {
		case *goredis.ClusterClient:
			server, err = client.MasterForKey(ctx, r.keys[0])
		case *goredis.Client:
			server = client
		}
		if err != nil || server == nil {
			continue // the row itself says so
		}
		addr := server.Options().Addr
		reason, asked := servers[addr]
		if !asked {
			if info, err := server.Info(ctx, "memory").Result(); err == nil {
				reason = noRoom(infoField(info, "used_memory"), infoField(info, "maxmemory"))
			}
			servers[addr] = reason
		}
		full[i] = reason
	}
	return full
}

func noRoom(used, most string) string {
	u, err1 := strconv.ParseInt(used, 10, 64)
	m, err2 := strconv.ParseInt(most, 10, 64)
	if err1 != nil || err2 != nil || m == 0 || u <= m {
		return ""
	}
	return "OOM: used_memory is " + used + " and maxmemory " + most
}

package redis

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"

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
				o.Problem, o.Away = r.err.Error(), true
			case r.wrong != nil:
				o.Problem, o.Foreign = r.wrong.Error(), true
				o.Version = r.version
			default:
				o.Version, o.Deleted = r.version, !r.there && r.version > 0
				o.Foreign = r.there && r.version == 0
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
		return jsonOr(r.value[0])
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
	return jsonOr(text)
}

// jsonOr is a text that is JSON as it is, and what somebody else wrote as a text of JSON.
func jsonOr(text string) []byte {
	if !cdc.Valid([]byte(text)) {
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
	defer func() {
		if slices.ContainsFunc(rows, func(r *reading) bool { return r.err != nil }) {
			s.lookAnew(ctx)
		}
	}()
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
			text, _, _ := strings.Cut(err.Error(), " script: ") // whose digest says nothing to anybody
			r.wrong = errors.New(text)
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
	if one := r.target.cfg.Mode; r.there && r.size <= r.most && len(r.value) == 0 && (one == ModeJSON || one == ModeString || one == ModeStream || one == ModeZset) {
		return bad
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

// Free is sinks.Freer.Free: the rows are deleted, and nothing is remembered of them.
func (s *Sink) Free(ctx context.Context, changes []cdc.Change, versions []cdc.Version) error {
	if err := s.Probe(ctx); err != nil { // which loads the scripts
		return err
	}
	pipe := s.client.Pipeline()
	for i := range changes {
		c := &changes[i]
		t, err := s.target(c.Table)
		if err != nil || t == nil {
			continue
		}
		image := c.Before
		if c.Op != cdc.OpDelete {
			image = bytes.TrimSpace(c.After)
		}
		at, null, _, err := t.place(c, image)
		if err != nil || null != "" {
			continue
		}
		keys, no := s.keysOf(t, at.key)
		if no != nil {
			continue
		}
		args := []any{"evalsha", t.verbs.free.digest, len(keys)}
		for _, key := range keys {
			args = append(args, key)
		}
		pipe.Do(ctx, append(args, versions[i].String(), "", at.member)...)
	}
	if pipe.Len() == 0 {
		return nil
	}
	_, err := pipe.Exec(ctx)
	return err
}

// Keeps is sinks.Reader.Keeps.
func (s *Sink) Keeps(name cdc.TableName) error {
	switch t, err := s.target(name); {
	case err != nil:
		return &sinks.Incomparable{Reason: err.Error()}
	case t == nil:
		return &sinks.Incomparable{Reason: "the sink does not take this table"}
	case t.cfg.Mode == ModeInvalidate:
		return &sinks.Incomparable{Reason: "its rows are only invalidated there (redis.mode: " + ModeInvalidate + "), so there is nothing to compare with them"}
	}
	return nil
}

// Expect is sinks.Reader.Expect.
func (s *Sink) Expect(_ context.Context, changes []cdc.Change) []sinks.Expected {
	out := make([]sinks.Expected, len(changes))
	a := attempt{Sink: s, scratch: new(scratch)}
	for i := range changes {
		c := &changes[i]
		t, err := s.target(c.Table)
		if err != nil {
			out[i].Problem = err.Error()
		}
		if t == nil || c.Op == cdc.OpDelete {
			continue
		}
		row := bytes.TrimSpace(c.After)
		at, null, _, err := t.place(c, row)
		if err != nil {
			out[i].Problem = err.Error()
			continue
		}
		if null != "" || t.unscored(row) {
			continue // it is nowhere
		}
		_, no := a.put(t, c, at, row)
		a.args, a.texts = a.args[:0], a.texts[:0]
		if no != nil {
			out[i].Problem = no.Sentence()
			continue
		}
		out[i] = sinks.Expected{Document: t.documentAt(c, at, row), Place: at.text()}
	}
	return out
}

// text is the place in one text. No key that is in use has a zero byte before its member.
func (p place) text() string {
	if p.member == "" {
		return p.key
	}
	return p.key + "\x00" + p.member
}

// Scan is sinks.Reader.Scan. A key is taken for a row only when the row in it gives that
// key, or when the table's companions name it.
func (s *Sink) Scan(ctx context.Context, table cdc.Table, known func(place string) bool, each func([]sinks.Found) error) error {
	if err := s.Keeps(table.Name); err != nil {
		return err
	}
	t, err := s.target(table.Name)
	if err != nil {
		return err
	}
	var one sync.Mutex // masters answer at once
	deliver := func(found []sinks.Found) error {
		if len(found) == 0 {
			return nil
		}
		one.Lock()
		defer one.Unlock()
		return each(found)
	}
	return s.names(ctx, t, func(ctx context.Context, names []string) error {
		if t.inside() {
			found, err := s.foundInside(ctx, t, table, slices.DeleteFunc(names, func(key string) bool { return own(key) || known(key) }))
			if err != nil {
				return err
			}
			return deliver(found)
		}
		var found []sinks.Found
		add := func(at place) {
			if !known(at.text()) {
				found = append(found, t.foundAt(table, at))
			}
		}
		for _, name := range names {
			key, ok := besideWhat(t.beside, name)
			if !ok {
				continue
			}
			if !t.cfg.sets() {
				add(place{key: key})
				continue
			}
			err := s.eachMember(ctx, name, func(members map[string]string) error {
				for member := range members {
					add(place{key, member})
				}
				err := deliver(found)
				found = nil
				return err
			})
			if err != nil {
				return err
			}
		}
		return deliver(found)
	})
}

// foundInside looks into keys that may be rows of a table.
func (s *Sink) foundInside(ctx context.Context, t *target, table cdc.Table, keys []string) (found []sinks.Found, err error) {
	_, err = s.choose(ctx, keys, t.readRow, func(key string, cmd goredis.Cmder) bool {
		row, ok := t.rowIn(cmd)
		if !ok || !t.places[0].Gives(t.name, key, row) {
			return false
		}
		f := sinks.Found{Place: key, Change: cdc.Change{Table: table.Name, Op: cdc.OpDelete, Before: textsOf(row)}}
		f.Change.Key, _ = table.KeyOf(func(column string) (string, bool) { text, ok := row[column]; return text, ok })
		found = append(found, f)
		return false
	})
	return found, err
}

// foundAt is a row of which only the place is known.
func (t *target) foundAt(table cdc.Table, at place) sinks.Found {
	f := sinks.Found{Place: at.text(), Change: cdc.Change{Table: table.Name, Op: cdc.OpDelete}}
	columns := map[string]string{}
	for i, text := range []string{at.key, at.member}[:len(t.places)] {
		some, err := t.places[i].Read(table, text)
		if err != nil {
			f.Problem = err.Error()
			return f
		}
		maps.Copy(columns, some)
	}
	key, err := table.KeyOf(func(column string) (string, bool) { text, ok := columns[column]; return text, ok })
	if err != nil {
		f.Problem = err.Error()
		return f
	}
	f.Change.Key, f.Change.Before = key, textsOf(columns)
	return f
}

func textsOf(columns map[string]string) []byte {
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(columns)) {
		texts = append(texts, name, columns[name])
	}
	return textsJSON(texts)
}

// Again is sinks.Reader.Again.
func (s *Sink) Again(ctx context.Context, found []sinks.Found, most int) []sinks.Stored {
	changes := make([]cdc.Change, len(found))
	for i := range found {
		changes[i] = found[i].Change
	}
	return s.Stored(ctx, changes, most)
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
	return t.documentAt(c, at, row)
}

func (t *target) documentAt(c *cdc.Change, at place, row []byte) []byte {
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

package redis

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
)

// target is a table's configuration, ready for use.
type target struct {
	cfg    TableConfig
	name   cdc.TableName
	places []cdc.KeyTemplate // of the key, and of the member of a set
	value  cdc.KeyTemplate   // of a string
	verbs  verbs
	// beside and forget begin the companions of the shapes that have their versions
	// there.
	beside, forget string
}

// target is nil for a table that does not go to this store.
func (s *Sink) target(name cdc.TableName) (*target, error) {
	if t, ok := s.targets.Load(name); ok {
		return t.(*target), nil
	}
	var t *target
	if cfg, ok := s.tables(name); ok {
		var err error
		if t, err = newTarget(name, cfg); err != nil {
			return nil, err
		}
		keys := strings.NewReplacer("{db}", name.DB, "{table}", name.Table).Replace(t.cfg.Key)
		if first, taken := s.keys.LoadOrStore(keys, name); taken && first != name {
			return nil, fmt.Errorf("tables %s and %s would share the keys %s; put {db} or {table} into their key templates", first, name, keys)
		}
	}
	s.targets.Store(name, t)
	return t, nil
}

func newTarget(name cdc.TableName, cfg TableConfig) (*target, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("table %s: %w", name, err)
	}
	t := &target{cfg: cfg, name: name, verbs: shapes[cfg.Mode], beside: ofTable(versionPrefix, name), forget: ofTable(forgetPrefix, name)}
	for _, text := range []string{cfg.Key, cfg.Member} {
		if text == "" {
			continue
		}
		template, err := cdc.ParseTemplate(text)
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", name, err)
		}
		t.places = append(t.places, template)
	}
	var err error
	t.value, err = cdc.ParseTemplate(cfg.Value)
	return t, err
}

// inside reports whether the version of a row lives in its value.
func (t *target) inside() bool {
	return t.cfg.Mode == ModeHash || t.cfg.Mode == ModeJSON || t.cfg.Mode == ModeStream
}

// moves reports whether a change can take a row from one place to another. Which
// columns are the primary key is not known here, so a column that is named counts.
func (t *target) moves() bool {
	for _, template := range t.places {
		if len(template.Columns()) > 0 {
			return true
		}
	}
	return false
}

// Moves reports whether a row of the table may be in another place after a change,
// so that the before images of superseded changes are needed to find it.
func (s *Sink) Moves(name cdc.TableName) bool {
	t, err := s.target(name)
	return err == nil && t != nil && t.moves()
}

// MovesRow is Moves for the row of a change, whose key says which columns are the
// primary key.
func (s *Sink) MovesRow(c *cdc.Change) bool {
	t, err := s.target(c.Table)
	if err != nil || t == nil {
		return false
	}
	_, _, _, err = t.place(c, nil)
	return err != nil // without an image there is no telling where it is
}

// NamedColumn is a column that a field of a TableConfig names.
type NamedColumn struct{ Field, Template, Column string }

// Columns are the columns that the templates of a valid c and its score name one by one.
func (c TableConfig) Columns() (named []NamedColumn) {
	c = c.withDefaults()
	for _, of := range [...]struct{ field, text string }{{"key", c.Key}, {"member", c.Member}, {"value", c.Value}} {
		template, err := cdc.ParseTemplate(of.text)
		if err != nil {
			return nil
		}
		for _, column := range template.Columns() {
			named = append(named, NamedColumn{of.field, of.text, column})
		}
	}
	if c.Score != "" {
		named = append(named, NamedColumn{"score", c.Score, c.Score})
	}
	return named
}

// CheckTable reports whether the templates of a table's configuration fit the
// table: they name the whole primary key, and columns that there are.
func CheckTable(cfg TableConfig, table cdc.Table) error {
	t, err := newTarget(table.Name, cfg)
	if err != nil {
		return err
	}
	names := make([]string, len(table.Columns))
	for i, c := range table.Columns {
		names[i] = c.Name
	}
	var errs []error
	for _, n := range cfg.Columns() {
		ofPlace := n.Field == "key" || n.Field == "member"
		if !slices.Contains(names, n.Column) && !(ofPlace && slices.Contains(table.Key, n.Column)) {
			errs = append(errs, fmt.Errorf("redis.%s: %s names the column %s, which rows of %s do not have here; they have %s: name one of these", n.Field, n.Template, n.Column, table.Name, strings.Join(names, ", ")))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	object := func(names []string) []byte {
		b := []byte{'{'}
		for i, name := range names {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(cdc.AppendString(b, name), ":0"...)
		}
		return append(b, '}')
	}
	_, err = cdc.RenderTogether(table.Name, object(table.Key), object(names), t.places...)
	return err
}

// place is where a row is: a key, and in a set a member.
type place struct{ key, member string }

// place gives where an image of a row is, and whether columns besides the primary
// key say so; nowhere when one of them is NULL.
func (t *target) place(c *cdc.Change, image []byte) (at place, nowhere string, fromRow bool, err error) {
	r, err := cdc.RenderTogether(c.Table, c.Key, image, t.places...)
	if err != nil || r.Null != "" {
		return place{}, r.Null, r.FromRow, err
	}
	at.key = r.Texts[0]
	if len(r.Texts) > 1 {
		at.member = r.Texts[1]
	}
	return at, "", r.FromRow, nil
}

// unscored reports whether a row has no place in its sorted set because its score is NULL.
func (t *target) unscored(row []byte) bool {
	if t.cfg.Score == "" {
		return false
	}
	_, isNull, _ := cdc.ColumnText(row, t.cfg.Score)
	return isNull
}

// stays notes the place of a row that only leaves its older ones, where it can be told. It
// reports whether the row may have had others.
func (t *target) stays(c *cdc.Change, done []place) (bool, []place) {
	at, null, fromRow, err := t.place(c, c.After)
	if err != nil || null != "" {
		return true, done
	}
	return fromRow, append(done, at)
}

// keys are the KEYS of the scripts for a key.
func (t *target) keys(key string) (names []string, slotted bool) {
	switch {
	case t.cfg.Mode == ModeStream:
		return []string{key}, true
	case t.inside():
		name, slotted := companion(key)
		return []string{key, name}, slotted
	}
	versions, slotted := beside(t.beside, key)
	if !t.cfg.sets() {
		return []string{key, versions}, slotted
	}
	forget, _ := beside(t.forget, key)
	return []string{key, versions, forget}, slotted
}

// score is the text of a column as ZADD takes it: a number, or a point in time in
// seconds since 1970.
func score(text string) (string, bool) {
	if f, err := strconv.ParseFloat(text, 64); err == nil {
		return text, !math.IsNaN(f) && !math.IsInf(f, 0) && !strings.ContainsAny(text, "xX_pP")
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return strconv.FormatFloat(float64(at.UnixMicro())/1e6, 'f', -1, 64), true
	}
	if at, err := time.Parse("2006-01-02 15:04:05.999999", strings.Replace(text, "T", " ", 1)); err == nil {
		return strconv.FormatFloat(float64(at.UnixMicro())/1e6, 'f', -1, 64), true
	}
	if at, err := time.Parse(time.DateOnly, text); err == nil {
		return strconv.FormatInt(at.Unix(), 10), true
	}
	return "", false
}

func poison(class sinks.Class, format string, args ...any) *sinks.Outcome {
	return &sinks.Outcome{Verdict: sinks.Poison, Class: class, Reason: fmt.Sprintf(format, args...)}
}

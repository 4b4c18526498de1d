package redis

import (
	"fmt"
	"strings"
	"testing"

	"lockstep/cdc"
	"lockstep/sinks"
)

// told spells what the store has of a row.
func told(s sinks.Stored) string {
	switch {
	case s.Problem != "":
		return "problem: " + s.Problem
	case s.Deleted:
		return fmt.Sprintf("%v deleted at %d", s.Place, s.Version-base)
	case s.Version == 0 && s.Document == nil:
		return fmt.Sprintf("%v nothing", s.Place)
	}
	return fmt.Sprintf("%v %d %s", s.Place, s.Version-base, s.Document)
}

func TestEveryShapeTellsWhatItHas(t *testing.T) {
	addr := server(t)
	for mode, want := range map[string][2]string{
		ModeHash:       {`map[key:q:b:1] 2 {"id":"1","level":"b","points":"7"}`, "map[key:q:b:1] deleted at 3"},
		ModeJSON:       {`map[key:q:b:1] 2 {"id":1,"level":"b","points":7}`, "map[key:q:b:1] deleted at 3"},
		ModeString:     {`map[key:q:b:1] 2 "7"`, "map[key:q:b:1] deleted at 3"},
		ModeStream:     {`map[key:q:b:1] 2 {"id":1,"level":"b","points":7}`, "map[key:q:b:1] deleted at 3"},
		ModeSet:        {`map[key:level:b member:1] 2 {"member":"1"}`, "map[key:level:b member:1] deleted at 3"},
		ModeZset:       {`map[key:level:b member:1] 2 {"member":"1","score":"7"}`, "map[key:level:b member:1] deleted at 3"},
		ModeInvalidate: {`map[key:q:b:1] deleted at 2`, "map[key:q:b:1] deleted at 3"},
	} {
		t.Run(mode, func(t *testing.T) {
			table, ok := moving[mode]
			if !ok {
				table = TableConfig{Key: "q:{level}:{id}", Mode: ModeInvalidate}
			}
			f := open(t, addr, table)
			if err := f.plain.FlushDB(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			create, move := at(1, base+1, nil, image(1, "a", 7)), at(1, base+2, image(1, "a", 7), image(1, "b", 7))
			expect(t, "applied", f.verdicts(t, create), "applied")
			expect(t, "applied", f.verdicts(t, move), "applied")
			would := f.Would(t.Context(), []cdc.Change{move})[0]
			expect(t, "again", would.Verdict, sinks.Duplicate)
			is := f.Stored(t.Context(), []cdc.Change{move}, 1<<20)[0]
			expect(t, "there", told(is), want[0])
			expect(t, "as it was foreseen", string(is.Document), string(would.Document))
			expected := f.Expect(t.Context(), []cdc.Change{move})[0]
			expect(t, "as it was expected", string(expected.Document), string(would.Document))
			if mode != ModeInvalidate {
				expect(t, "found", f.found(t), expected.Place+" "+string(move.Key)+" "+string(would.Document))
			} else {
				expect(t, "nothing to compare", f.Keeps(questions) != nil, true)
			}
			expect(t, "where it was before", f.Stored(t.Context(), []cdc.Change{create}, 1<<20)[0].Deleted, true)
			gone := at(1, base+3, image(1, "b", 7), nil)
			expect(t, "a delete", f.Would(t.Context(), []cdc.Change{gone})[0].Outcome, sinks.Outcome{Verdict: sinks.Applied})
			expect(t, "applied", f.verdicts(t, gone), "applied")
			if mode != ModeInvalidate {
				expect(t, "found after the delete", f.found(t), "")
			}
			expect(t, "deleted", told(f.Stored(t.Context(), []cdc.Change{gone}, 1<<20)[0]), want[1])
			expect(t, "late", f.Would(t.Context(), []cdc.Change{move})[0].Verdict, sinks.Stale)

			expect(t, "nowhere", f.Expect(t.Context(), []cdc.Change{at(2, base+1, nil, image(2, null, 7))})[0].Place, "")
			nowhere := at(2, base+1, nil, image(2, null, 7))
			expect(t, "a row without a place", told(f.Stored(t.Context(), []cdc.Change{nowhere}, 1<<20)[0]), "map[] nothing")
			for _, c := range []cdc.Change{nowhere, at(3, base+1, nil, []byte(`{"id":3}`)), at(4, base+1, nil, nil)} {
				foreseen := f.Would(t.Context(), []cdc.Change{c})[0].Outcome
				expect(t, "what has no place", f.Apply(t.Context(), []cdc.Change{c})[0], foreseen)
			}
			if mode == ModeInvalidate { // it takes keys of any type
				return
			}
			wrong := at(5, base+1, nil, image(5, "w", 7))
			key := f.Stored(t.Context(), []cdc.Change{wrong}, 1<<20)[0].Place["key"]
			f.plain.LPush(t.Context(), key, "x")
			foreseen := f.Would(t.Context(), []cdc.Change{wrong})[0]
			expect(t, "a key of another type", foreseen.Class, sinks.ClassWrongType)
			expect(t, "a key of another type", f.verdicts(t, wrong), "poison wrong_type")
			expect(t, "it is told", f.Stored(t.Context(), []cdc.Change{wrong}, 1<<20)[0].Problem != "", true)
		})
	}
}

// found spells what a scan finds that is there still.
func (f fixture) found(t *testing.T) string {
	t.Helper()
	table := cdc.Table{Name: questions, Columns: []cdc.Column{{Name: "id", Kind: cdc.KindInt}, {Name: "level", Kind: cdc.KindKeyword}, {Name: "points", Kind: cdc.KindInt}}, Key: []string{"id"}}
	var all []string
	err := f.Scan(t.Context(), table, func(string) bool { return false }, func(found []sinks.Found) error {
		for i, is := range f.Again(t.Context(), found, 1<<20) {
			if found[i].Problem != "" || is.Problem != "" {
				t.Errorf("%+v: %+v", found[i], is)
			}
			if is.Document != nil {
				all = append(all, found[i].Place+" "+string(found[i].Change.Key)+" "+string(is.Document))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "; ")
}

func TestAServerWithoutRoomWouldTakeDeletesOnly(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "q:{id}"})
	expect(t, "applied", f.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")
	defer f.set(t, "maxmemory", "1")()
	changes := []cdc.Change{upsert(1, base+1, `{"id":1}`), upsert(2, base+1, `{"id":2}`), upsert(1, base-1, `{"id":1}`), remove(1, base+1)}
	changes[2].Key, changes[3].Key = []byte(`{"id":3}`), []byte(`{"id":4}`)
	would := f.Would(t.Context(), changes)
	for i, got := range f.Apply(t.Context(), changes) {
		if would[i].Verdict != got.Verdict {
			t.Errorf("change %d would get %+v and got %+v", i, would[i].Outcome, got)
		}
	}
	expect(t, "no room", would[0].Verdict, sinks.Unavailable)
}

// The scripts of reading come back like the others.
func TestReadingLoadsForgottenScripts(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "q:{id}"})
	expect(t, "applied", f.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")
	if err := f.plain.ScriptFlush(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	expect(t, "read", told(f.Stored(t.Context(), []cdc.Change{upsert(1, base, `{"id":1}`)}, 1<<20)[0]), `map[key:q:1] 0 {"id":"1"}`)
}

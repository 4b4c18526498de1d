package redis

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/cdc"
)

// at is a change of a row to an image.
func at(id int, v cdc.Version, before, after []byte) cdc.Change {
	c := cdc.Change{Table: questions, Op: cdc.OpUpdate, Version: v, Key: fmt.Appendf(nil, `{"id":%d}`, id), Before: before, After: after}
	if after == nil {
		c.Op = cdc.OpDelete
	}
	return c
}

func TestAStringIsMadeOfColumnsAndItsVersionStandsBesideIt(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "q:{id}", Mode: ModeString, Value: "{title}|{level}|{{}} {table}"})
	twice := open(t, f.plain.Options().Addr, TableConfig{Key: "q:{id}", Mode: ModeString, Value: "{title}{title}"})
	twice.cfg.MaxValueBytes = 1024
	expect(t, "a column named twice", twice.verdicts(t, upsert(1, base, `{"id":1,"title":"`+strings.Repeat("x", 600)+`"}`)), "poison too_large")
	const marker = "lockstep:v:bank.questions:{q:1}"
	expect(t, "verdict", f.verdicts(t, upsert(1, base, `{"id":1,"title":"a|b:\"%","level":null}`)), "applied")
	expect(t, "value", f.plain.Get(t.Context(), "q:1").Val(), `a|b:"%||{} questions`)
	expect(t, "version", f.plain.Get(t.Context(), marker).Val(), base.String())
	expect(t, "its time to live", f.plain.TTL(t.Context(), marker).Val(), -1)
	expect(t, "a column is missing", f.verdicts(t, upsert(1, base+1, `{"id":1,"title":"x"}`)), "poison mapping")
	expect(t, "delete", f.verdicts(t, remove(1, base+2)), "applied")
	if ttl := f.plain.TTL(t.Context(), marker).Val(); ttl <= 0 {
		t.Errorf("the version of a deleted row lives for %s", ttl)
	}
	expect(t, "late", f.verdicts(t, upsert(1, base+1, `{"id":1,"title":"x","level":"y"}`)), "stale")
	expect(t, "again", f.verdicts(t, upsert(1, base+3, `{"id":1,"title":"x","level":"y"}`)), "applied")
	expect(t, "its time to live", f.plain.TTL(t.Context(), marker).Val(), -1)
	f.cfg.MaxValueBytes = 1024
	expect(t, "a large row", f.verdicts(t, upsert(1, base+4, `{"id":1,"title":"`+strings.Repeat("x", 1024)+`","level":"y"}`)), "poison too_large")
}

func TestAStreamIsTheHistoryOfARow(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "q:{id}:history", Mode: ModeStream, MaxLen: 3})
	entries := func() (list []string) {
		for _, m := range f.plain.XRange(t.Context(), "q:1:history", "-", "+").Val() {
			text := m.ID
			for _, name := range slices.Sorted(maps.Keys(m.Values)) {
				text += fmt.Sprintf(" %s=%s", name, m.Values[name])
			}
			list = append(list, text)
		}
		return list
	}
	v := func(n int) cdc.Version { return base + cdc.Version(n) }
	one := upsert(1, v(5), `{"id":1}`)
	one.Op = cdc.OpCreate
	expect(t, "first", f.verdicts(t, one), "applied")
	expect(t, "again", f.verdicts(t, one), "duplicate")
	expect(t, "older", f.verdicts(t, upsert(1, v(4), `{"id":1}`)), "stale")
	expect(t, "newer", f.verdicts(t, upsert(1, v(7), `{"id":1,"n":1}`)), "applied")
	expect(t, "delete", f.verdicts(t, remove(1, v(8))), "applied")
	expect(t, "entries", entries(), []string{`1-5 op=c row={"id":1}`, `1-7 op=u row={"id":1,"n":1}`, "1-8 op=d"})
	if ttl := f.plain.TTL(t.Context(), "q:1:history").Val(); ttl <= 13*24*time.Hour {
		t.Errorf("the history of a deleted row lives for %s", ttl)
	}
	expect(t, "late", f.verdicts(t, upsert(1, v(6), `{"id":1}`)), "stale")
	next, _ := cdc.NewVersion(2, 1)
	expect(t, "another epoch", f.verdicts(t, upsert(1, next, `{"id":1}`)), "applied")
	expect(t, "trimmed", entries(), []string{`1-7 op=u row={"id":1,"n":1}`, "1-8 op=d", `2-1 op=u row={"id":1}`})
	expect(t, "its time to live", f.plain.TTL(t.Context(), "q:1:history").Val(), -1)
	f.plain.XDel(t.Context(), "q:1:history", "2-1")
	expect(t, "the version outlives its entry", f.verdicts(t, upsert(1, next, `{"id":1}`)), "duplicate")

	if n, err := f.Sweep(t.Context(), questions, next+1); n != 0 || err != nil {
		t.Errorf("swept %d, %v; the last entry is a delete", n, err)
	}
	expect(t, "once more", f.verdicts(t, upsert(1, next+2, `{"id":1}`)), "applied")
	if n, err := f.Sweep(t.Context(), questions, next+2); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	expect(t, "swept at its own version", entries(), []string{"2-3 op=d"})

	f.plain.XAdd(t.Context(), &goredis.XAddArgs{Stream: "q:2:history", ID: "1764132000000-0", Values: []string{"a", "b"}})
	expect(t, "a stream of somebody else", f.verdicts(t, upsert(2, next, `{"id":2}`), remove(2, next)), "poison wrong_type, poison wrong_type")
}

func TestASetForgetsItsRemovedMembersAFewAtATime(t *testing.T) {
	for _, table := range []TableConfig{{Key: "tag:{tag}", Mode: ModeSet, Member: "{id}"}, {Key: "tag:{tag}", Mode: ModeZset, Member: "{id}", Score: "id"}} {
		t.Run(table.Mode, func(t *testing.T) {
			f := open(t, server(t), table)
			row := func(id int) []byte { return fmt.Appendf(nil, `{"id":%d,"tag":"x"}`, id) }
			const versions, forget = "lockstep:v:bank.questions:{tag:x}", "lockstep:x:bank.questions:{tag:x}"
			remembered := func() int64 { return f.plain.HLen(t.Context(), versions).Val() }
			ttl := func(key string) time.Duration { return f.plain.TTL(t.Context(), key).Val() }
			expect(t, "live", f.verdicts(t, at(0, base, nil, row(0))), "applied")
			for id := 1; id <= 40; id++ {
				f.verdicts(t, at(id, base, nil, row(id)))
				expect(t, "delete", f.verdicts(t, at(id, base+1, row(id), nil)), "applied")
			}
			expect(t, "late", f.verdicts(t, at(1, base, nil, row(1))), "stale")
			expect(t, "remembered", remembered(), 41)
			if left := ttl(versions); left != -1 {
				t.Errorf("the versions of a set with members live for %s", left)
			}
			for id := 1; id <= 40; id++ { // their time has come
				f.plain.ZAdd(t.Context(), forget, goredis.Z{Score: 1, Member: id})
			}
			f.verdicts(t, at(0, base+1, row(0), row(0)))
			expect(t, "after one call", remembered(), 41-16)
			f.verdicts(t, at(0, base+2, row(0), row(0)))
			f.verdicts(t, at(0, base+3, row(0), row(0)))
			expect(t, "after three", remembered(), 1)
			expect(t, "nothing is due", f.plain.Exists(t.Context(), forget).Val(), 0)
			expect(t, "the last member", f.verdicts(t, at(0, base+4, row(0), nil)), "applied")
			expect(t, "keys", keys(t, f), []string{versions, forget})
			for _, key := range []string{versions, forget} {
				if left := ttl(key); left <= 0 {
					t.Errorf("%s of an empty set lives for %s", key, left)
				}
			}
			expect(t, "late", f.verdicts(t, at(0, base+3, row(0), row(0))), "stale")
			expect(t, "again", f.verdicts(t, at(0, base+5, nil, row(0))), "applied")
			expect(t, "live again", ttl(versions), -1)
			f.plain.SAdd(t.Context(), "tag:x", "foreign")
			f.plain.ZAdd(t.Context(), "tag:x", goredis.Z{Member: "foreign"})
			if n, err := f.Sweep(t.Context(), questions, base+9); n != 1 || err != nil {
				t.Errorf("swept %d, %v", n, err)
			}
			expect(t, "what is not ours stays", f.plain.Exists(t.Context(), "tag:x").Val(), 1)
		})
	}
}

func TestAScoreIsANumberOrADate(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "all", Mode: ModeZset, Member: "{id}", Score: "s"})
	for i, tt := range []struct {
		value, want string
	}{
		{`12`, "12"}, {`"-3.50"`, "-3.5"}, {`18446744073709551615`, "1.8446744073709552e+19"}, {`"2026-11-26T04:00:00.5Z"`, "1.7956656005e+09"},
		{`"2026-11-26 04:00:00"`, "1.7956656e+09"}, {`"2026-11-26"`, "1.7956512e+09"},
		{`null`, "filtered"}, {`"abc"`, "poison mapping"}, {`"nan"`, "poison mapping"}, {`"0x10"`, "poison mapping"}, {`"0000-00-00"`, "poison mapping"},
	} {
		got := f.verdicts(t, at(i, base, nil, fmt.Appendf(nil, `{"id":%d,"s":%s}`, i, tt.value)))
		if got == "applied" {
			got = fmt.Sprint(f.plain.ZScore(t.Context(), "all", fmt.Sprint(i)).Val())
		}
		expect(t, tt.value, got, tt.want)
	}
	expect(t, "it becomes NULL", f.verdicts(t, at(0, base+1, []byte(`{"id":0,"s":12}`), []byte(`{"id":0,"s":null}`))), "applied")
	expect(t, "members", f.plain.ZCard(t.Context(), "all").Val(), 5)

	// A row that is read again does not say whether it had a score.
	again := at(1, base+2, nil, []byte(`{"id":1,"s":null}`))
	again.Op = cdc.OpRead
	expect(t, "it is read again, and NULL", f.verdicts(t, again), "applied")
	expect(t, "an older score", f.verdicts(t, at(1, base+1, nil, []byte(`{"id":1,"s":3}`))), "stale")
	expect(t, "members", f.plain.ZCard(t.Context(), "all").Val(), 4)
}

// Between choosing a row and removing it a change may have come.
func TestASweepLeavesWhatHasBecomeNewer(t *testing.T) {
	addr := server(t)
	tables := maps.Clone(moving)
	tables[ModeInvalidate] = TableConfig{Key: "q:{level}:{id}", Mode: ModeInvalidate}
	for mode, table := range tables {
		t.Run(mode, func(t *testing.T) {
			f := open(t, addr, table)
			f.plain.FlushDB(t.Context())
			row := image(1, "a", 1)
			expect(t, "row", f.verdicts(t, at(1, base+5, nil, row)), "applied")
			if mode == ModeInvalidate {
				f.plain.Set(t.Context(), "q:a:1", "x", 0)
			}
			target, err := f.target(questions)
			if err != nil {
				t.Fatal(err)
			}
			c := at(1, base+5, nil, row)
			where, _, _, err := target.place(&c, row)
			if err != nil {
				t.Fatal(err)
			}
			older := sweep{Sink: f.Sink, t: target, v: base + 4}
			if err := older.takeOut(t.Context(), []place{where}); err != nil || older.removed.Load() != 0 {
				t.Errorf("a sweep to an older version removed %d rows, %v", older.removed.Load(), err)
			}
			sw := sweep{Sink: f.Sink, t: target, v: base + 5}
			if err := sw.takeOut(t.Context(), []place{where}); err != nil || sw.removed.Load() != 1 {
				t.Errorf("a sweep to its version removed %d rows, %v", sw.removed.Load(), err)
			}
		})
	}
}

func TestShapesRefuseKeysOfAnotherTypeAndNeighboursGoOn(t *testing.T) {
	addr := server(t)
	for mode, table := range moving {
		t.Run(mode, func(t *testing.T) {
			f := open(t, addr, table)
			f.plain.FlushDB(t.Context())
			for _, key := range []string{"q:a:1", "level:a"} {
				f.plain.LPush(t.Context(), key, "x")
			}
			f.cfg.PipelineBytes = 1024
			expect(t, "verdicts", f.verdicts(t, at(1, base, nil, image(1, "a", 1)), at(2, base, nil, image(2, "b", 1)), at(3, base, image(3, "c", 1), nil)),
				"poison wrong_type, applied, applied")
			expect(t, "delete", f.verdicts(t, at(1, base, image(1, "a", 1), nil)), "poison wrong_type")
			if _, err := f.Sweep(t.Context(), questions, base+9); err != nil {
				t.Error(err)
			}
		})
	}
}

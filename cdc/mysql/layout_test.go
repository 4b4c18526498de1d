package mysql

import (
	"testing"

	"lockstep/cdc"
)

// Every change tells the columns that its table had then, whatever they hold: the sinks see
// an altered table by it.
func TestAChangeTellsOfTheColumnsThatItsTableHad(t *testing.T) {
	w := newWorld(t)
	w.cfg.AfterAlter = alterLeave
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, t VARCHAR(20))", "INSERT INTO q VALUES (0, '7')")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitCopied(t)
	alters := []string{
		"", "ALTER TABLE q COMMENT = 'x'", // the same columns
		"ALTER TABLE q MODIFY t TEXT", "ALTER TABLE q MODIFY t INT", "ALTER TABLE q MODIFY t INT UNSIGNED", "ALTER TABLE q RENAME COLUMN t TO u",
	}
	for i, alter := range alters {
		if alter != "" {
			w.exec(alter)
		}
		w.exec("INSERT INTO q VALUES (" + string(rune('1'+i)) + ", '7')")
	}
	var log, silent []cdc.Change
	out.await(t, "the rows", func(all []cdc.Change, _ []cdc.Position) bool {
		log, silent = nil, nil
		for _, c := range all {
			if c.Layout == 0 && c.Op != cdc.OpBarrier {
				silent = append(silent, c)
			}
			if c.Op == cdc.OpCreate {
				log = append(log, c)
			}
		}
		return len(log) == len(alters)
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if len(silent) > 0 {
		t.Errorf("%d changes tell nothing of their columns, the first of them %s %s", len(silent), silent[0].Op, silent[0].Key)
	}
	for i := range log {
		for j := range i {
			if same := i == 1 && j == 0; (log[i].Layout == log[j].Layout) != same {
				t.Errorf("behind %q the columns are told apart from those behind %q: %t", alters[i], alters[j], same)
			}
		}
	}
}

package mysql

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"

	"lockstep/cdc"
	"lockstep/internal/secret"
)

const salt = "0123456789abcdef0123456789abcdef"

func hashed(text string) string {
	mac := hmac.New(sha256.New, []byte(salt))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

func TestAMaskIsReadOrSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ mask, want string }{
		{"drop", ""}, {"sha256", ""}, {"keep last 4", ""}, {" keep  first 1 last 2 ", ""}, {"sha256, was email", ""}, {"drop, was a b, was c, may be gone", ""},
		{"", "use drop, sha256, or"}, {"hash", "use drop, sha256, or"}, {"keep", "use drop"}, {"keep first", "use drop"}, {"keep first 0", "use drop"}, {"keep last x", "use drop"},
		{"keep last 1 first 1", "use drop"}, {"keep first 1 first 1", "use drop"}, {"keep first 1 last 2 3", "use drop"}, {"drop, gone", "behind the comma stands"}, {"drop, was ", "behind the comma stands"},
	} {
		err := Masks{"x": Mask(c.mask)}.Check(true)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v; want %q", c.mask, err, c.want)
		}
	}
	if err := (Masks{"x": "sha256"}).Check(false); err == nil || !strings.Contains(err.Error(), "x: sha256 needs source.mask_salt") {
		t.Errorf("without a salt: %v", err)
	}
}

func TestAPartialMaskCountsCharactersAndNotBytes(t *testing.T) {
	for _, c := range []struct{ mask, text, want string }{
		{"keep last 4", "4111111111111234", "***1234"},
		{"keep first 1", "Größe", "G***"},
		{"keep first 2 last 1", "日本語の文😀", "日本***😀"},
		{"keep first 2 last 2", "abcd", "***"},
		{"keep first 2 last 2", "abcde", "ab***de"},
		{"keep last 4", "", "***"},
		{"keep last 9", "é", "***"},
	} {
		m, err := Mask(c.mask).parse()
		if err != nil {
			t.Fatal(err)
		}
		if got := m.partial(c.text); got != c.want {
			t.Errorf("%s of %q is %q, want %q", c.mask, c.text, got, c.want)
		}
	}
}

// masked is a world with a table of people, of whom nothing may get out that has
// geheim in it.
func masked(t *testing.T, masks Masks) *world {
	w := newWorld(t)
	w.cfg.MaskSalt = salt
	w.cfg.Masks = func(n cdc.TableName) Masks {
		if n.Table == "people" {
			return masks
		}
		return nil
	}
	w.exec(`CREATE TABLE people (id INT PRIMARY KEY, email VARCHAR(60), phone VARCHAR(20), pin BIGINT, notes TEXT, data JSON, born DATE, town VARCHAR(20))`)
	return w
}

var peopleMasks = Masks{"email": "sha256", "phone": "keep last 3", "pin": "sha256", "notes": "drop", "data": "sha256", "born": "keep first 4"}

// Masked values are nowhere: not in copies, not in both images of changes, not in logs
// and errors. Equal values are equal wherever they come from, and NULL stays NULL.
func TestMaskedValuesNeverLeaveTheCapture(t *testing.T) {
	w := masked(t, peopleMasks)
	const values = `'geheim@"x".org', 'geheim-555', 4711, 'geheim', '{"a": "geheim"}', '1984-07-13', 'Ulm'`
	w.exec("INSERT INTO people VALUES (1, "+values+")", "INSERT INTO people (id, town) VALUES (2, 'Bonn')")
	out, lines := newMemory(), &lockedLog{}
	s := w.source(out, nil)
	s.Log = slog.New(slog.NewTextHandler(lines, nil))
	var described cdc.Table
	s.MayCopy = func(_ context.Context, t cdc.Table) (bool, error) { described = t; return false, nil }
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	go func() { ended <- s.Run(ctx) }()
	out.awaitKey(t, `{"id":2}`)
	w.exec("INSERT INTO people VALUES (3, "+values+")", "UPDATE people SET town = 'Köln' WHERE id = 3", "DELETE FROM people WHERE id = 3", "UPDATE people SET email = 'geheim@\"x\".org' WHERE id = 2")
	changes := out.awaitChanges(t, 6)
	full := func(town string) string {
		return `"email":"` + hashed(`geheim@"x".org`) + `","phone":"***555","pin":"` + hashed("4711") + `","data":"` + hashed(`{"a":"geheim"}`) + `","born":"1984***","town":"` + town + `"}`
	}
	const null = `"phone":null,"pin":null,"data":null,"born":null,"town":"Bonn"}`
	for i, want := range []string{
		`r {"id":1}  -> {"id":1,` + full("Ulm"),
		`r {"id":2}  -> {"id":2,"email":null,` + null,
		`c {"id":3}  -> {"id":3,` + full("Ulm"),
		`u {"id":3} {"id":3,` + full("Ulm") + ` -> {"id":3,` + full("Köln"),
		`d {"id":3} {"id":3,` + full("Köln") + ` -> `,
		`u {"id":2} {"id":2,"email":null,` + null + ` -> {"id":2,"email":"` + hashed(`geheim@"x".org`) + `",` + null,
	} {
		if got := show(changes)[i]; got != want {
			t.Errorf("change %d\ngot  %s\nwant %s", i, got, want)
		}
	}
	kinds := ""
	for _, c := range described.Columns {
		kinds += c.Name + " " + string(c.Kind) + ", "
	}
	if want := "id int, email keyword, phone keyword, pin keyword, data keyword, born keyword, town keyword, "; kinds != want {
		t.Errorf("the table is described as %s; want %s", kinds, want)
	}

	conn, err := w.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, q := range []string{"SET SESSION binlog_format = STATEMENT", "INSERT INTO people (id, email) VALUES (9, 'geheim')"} {
		if _, err := conn.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	err = <-ended
	if err == nil || !strings.Contains(err.Error(), "by statement") || !strings.Contains(err.Error(), "INSERT INTO people (id, email) VALUES ( ...") {
		t.Errorf("ended with %v", err)
	}
	if text := fmt.Sprint(err, lines.text.String(), show(changes), out.pos); strings.Contains(text, "geheim") || strings.Contains(text, "4711") || strings.Contains(text, salt) {
		t.Errorf("a masked value got out:\n%s", text)
	}
}

// An error about a masked value does not show it.
func TestAnErrorAboutAMaskedValueDoesNotShowIt(t *testing.T) {
	for _, masks := range []Masks{peopleMasks, {"born": "drop"}} {
		w := masked(t, masks)
		w.cfg.ZeroDates = zeroStop
		out := newMemory()
		s := w.source(out, nil)
		ended := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		go func() { ended <- s.Run(ctx) }()
		out.await(t, "the first position", func(_ []cdc.Change, p []cdc.Position) bool { return len(p) >= 2 })
		conn, err := w.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, q := range []string{"SET SESSION sql_mode = ''", "INSERT INTO people (id, born) VALUES (1, '1984-00-00')"} {
			if _, err := conn.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		err = <-ended
		if err == nil || !strings.Contains(err.Error(), "column born: its value cannot be read, and is not shown because it is masked") || strings.Contains(err.Error(), "1984") {
			t.Errorf("%v: ended with %v", masks, err)
		}
	}
}

func TestAMaskThatDoesNotFitItsTableStops(t *testing.T) {
	for _, c := range []struct {
		masks Masks
		want  string
	}{
		{Masks{"mail": "sha256"}, `has no column mail, which its mask names, so a column may be unmasked; mend it with: tables[].mask: {NEWNAME: "sha256, was mail"} if it has another name now, or {mail: "sha256, may be gone"} if it is gone for good`},
		{Masks{"id": "sha256"}, "the column id cannot be masked, because the primary key tells its rows apart"},
		{Masks{"data": "keep last 1"}, "the column data is not text or a number, so no part of it can be kept"},
	} {
		w := masked(t, nil)
		w.exec("INSERT INTO people (id, email) VALUES (1, 'geheim')")
		out := newMemory()
		stop := w.run(w.source(out, nil)) // without a mask, so that the table is copied already
		out.awaitKey(t, `{"id":1}`)
		out.awaitSaved(t)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.cfg.Masks = func(cdc.TableName) Masks { return c.masks }
		for _, from := range []*cdc.Position{nil, &out.pos[len(out.pos)-1]} {
			again := newMemory()
			err := w.runToEnd(w.source(again, from))
			if stop, ok := errors.AsType[*Stop](err); !ok || !strings.Contains(stop.Error(), c.want) {
				t.Errorf("%v, from a position: %t: ended with %v; want %q", c.masks, from != nil, err, c.want)
			}
			if len(again.changes) > 0 {
				t.Errorf("%v: %s was published", c.masks, show(again.changes))
			}
		}
		found, err := Inspect(t.Context(), w.cfg, func(n cdc.TableName) bool { return n.DB == w.name })
		if err != nil {
			t.Fatal(err)
		}
		seen := false
		for _, f := range found {
			seen = seen || !f.OK && strings.Contains(f.Detail+"; mend it with: "+f.Fix, c.want)
		}
		if !seen {
			t.Errorf("%v: the doctor finds nothing: %v", c.masks, found)
		}
	}
}

// A generated column would tell what a masked one hides.
func TestAGeneratedColumnIsMaskedWithWhatItIsMadeOf(t *testing.T) {
	for _, name := range []string{gomysql.MySQLFlavor, gomysql.MariaDBFlavor} {
		f := newFlavor(t, name)
		f.exec("CREATE TABLE people (id INT PRIMARY KEY, `E mail` VARCHAR(60), n INT, small VARCHAR(60) AS (LOWER(`E mail`)) STORED, more INT AS (n + 1) VIRTUAL)")
		conn, err := connect(t.Context(), f.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, c := range []struct {
			masks Masks
			want  string
		}{
			{Masks{"e mail": "sha256"}, "the column small is made of the masked column E mail and not masked itself; mend it with: tables[].mask: {small: drop}"},
			{Masks{"n": "drop"}, "the column more is made of the masked column n"},
			{Masks{"e mail": "sha256", "small": "drop"}, ""},
			{nil, ""},
		} {
			f.cfg.Masks = func(cdc.TableName) Masks { return c.masks }
			f.cfg.MaskSalt = salt
			_, err := tableLayout(conn, cdc.TableName{DB: f.home, Table: "people"}, f.cfg.policy())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s, %v: %v; want %q", name, c.masks, err, c.want)
			}
		}
	}
}

// A masked column that gets another name stops the capture before a value of it gets
// out, and the mask that is asked for lets it go on from where it was, over rows from
// before and from behind the statement.
func TestARenamedColumnIsNeverUnmasked(t *testing.T) {
	for name, c := range map[string]struct{ alter, want string }{
		"renamed":                       {"ALTER TABLE people RENAME COLUMN email TO mail", "its masked column email is now called mail"},
		"changed":                       {"ALTER TABLE people CHANGE COLUMN `email` `mail` VARCHAR(70)", "its masked column email is now called mail"},
		"another one takes its name":    {"ALTER TABLE people RENAME COLUMN email TO mail, ADD COLUMN email INT", "its masked column email is now called mail"},
		"in a table that is swapped in": {"", "has no column email, which its mask names"},
	} {
		t.Run(name, func(t *testing.T) {
			w := masked(t, Masks{"email": "sha256"})
			w.exec("INSERT INTO people (id, email) VALUES (1, 'geheim')")
			out := newMemory()
			s := w.source(out, nil)
			ended := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			go func() { ended <- s.Run(ctx) }()
			out.awaitKey(t, `{"id":1}`)
			out.awaitSaved(t)
			out.mu.Lock()
			from := out.pos[len(out.pos)-1]
			out.mu.Unlock()
			w.exec("UPDATE people SET email = 'geheim2'")
			if c.alter != "" {
				w.exec(c.alter)
			} else {
				w.exec("CREATE TABLE _people_new LIKE people", "ALTER TABLE _people_new RENAME COLUMN email TO mail", "INSERT INTO _people_new SELECT * FROM people",
					"RENAME TABLE people TO _people_old, _people_new TO people")
			}
			w.exec("INSERT INTO people (id, mail) VALUES (2, 'geheim3')")
			if err := <-ended; err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("ended with %v; want %q", err, c.want)
			}

			w.cfg.Masks = func(cdc.TableName) Masks { return Masks{"mail": "sha256, was email"} }
			again := newMemory()
			stop := w.run(w.source(again, &from))
			again.awaitKey(t, `{"id":2}`)
			again.await(t, "the old image", func(changes []cdc.Change, _ []cdc.Position) bool {
				return strings.Contains(strings.Join(show(changes), "\n"), `"mail":"`+hashed("geheim2")+`"`)
			})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			all := strings.Join(show(append(out.changes, again.changes...)), "\n")
			if strings.Contains(all, "geheim") {
				t.Errorf("a masked value got out:\n%s", all)
			}
			for _, want := range []string{`"email":"` + hashed("geheim") + `"`, `"email":"` + hashed("geheim2") + `"`, `"mail":"` + hashed("geheim3") + `"`} {
				if !strings.Contains(all, want) {
					t.Errorf("no row has %s:\n%s", want, all)
				}
			}
		})
	}
}

func TestAMaskedColumnThatIsGoneMayBeGone(t *testing.T) {
	w := masked(t, Masks{"email": "sha256"})
	w.exec("INSERT INTO people (id, email) VALUES (1, 'geheim')")
	out := newMemory()
	s := w.source(out, nil)
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	go func() { ended <- s.Run(ctx) }()
	out.awaitKey(t, `{"id":1}`)
	out.awaitSaved(t)
	out.mu.Lock()
	from := out.pos[len(out.pos)-1]
	out.mu.Unlock()
	w.exec("UPDATE people SET email = 'geheim2'", "ALTER TABLE people DROP COLUMN email", "INSERT INTO people (id) VALUES (2)")
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "has no column email") {
		t.Errorf("ended with %v", err)
	}
	w.cfg.Masks = func(cdc.TableName) Masks { return Masks{"email": "sha256, may be gone"} }
	again := newMemory()
	stop := w.run(w.source(again, &from))
	again.awaitKey(t, `{"id":2}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(show(again.changes), "\n"); strings.Contains(all, "geheim") || !strings.Contains(all, hashed("geheim2")) {
		t.Errorf("published:\n%s", all)
	}
}

// Every line of the page's table about masks holds.
func TestThePageAboutMasksHolds(t *testing.T) {
	page, err := os.ReadFile("../../docs/shaping.md")
	if err != nil {
		t.Fatal(err)
	}
	_, pageSalt, _ := strings.Cut(string(page), "mask_salt: ")
	pageSalt = strings.Fields(pageSalt)[0]
	_, table, _ := strings.Cut(string(page), "| mask | value | becomes |\n| --- | --- | --- |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	lines := strings.Split(table, "\n")
	for _, line := range lines {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		if len(cells) != 3 {
			t.Fatalf("not a line of the table: %s", line)
		}
		c := column{name: "c", form: formText}
		c.setName("c")
		l := &layout{table: cdc.TableName{DB: "d", Table: "t"}, columns: []column{c}}
		if err := l.mask(policy{maskSalt: secret.Text(pageSalt), masks: func(cdc.TableName) Masks { return Masks{"c": Mask(strings.Trim(cells[0], "`"))} }}); err != nil {
			t.Fatal(err)
		}
		row, err := l.appendRow(nil, []any{[]byte(strings.Trim(cells[1], "`"))})
		want := `{"c":"` + strings.Trim(cells[2], "`") + `"}`
		if cells[2] == "no field" {
			want = "{}"
		}
		if err != nil || string(row) != want {
			t.Errorf("%s: %s, %v; want %s", line, row, err, want)
		}
	}
	if len(lines) < 6 {
		t.Errorf("the table has %d lines", len(lines))
	}
}

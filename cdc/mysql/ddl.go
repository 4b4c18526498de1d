package mysql

import (
	"slices"
	"strings"

	"lockstep/cdc"
)

// verb says what a statement in the log means for captured tables.
type verb uint8

const (
	verbHarmless   verb = iota // touches no rows of ours without row events
	verbBegin                  // opens a transaction
	verbCommit                 // ends a transaction
	verbRollback               // ends a transaction whose rows do not stand
	verbSavepoint              // inside a transaction
	verbRollbackTo             // inside a transaction
	verbXA                     // a two-phase transaction, whose rows are logged before they are decided
	verbCreate                 // makes a table, whose rows are all in the log from then on
	verbMayCreate              // makes a table unless it is there already: IF NOT EXISTS is logged in either case
	verbReplace                // drops a table if it is there, and makes it (MariaDB)
	verbEmpty                  // takes all rows of a table away
	verbDrop                   // takes tables away
	verbDatabase               // takes a database away
	verbRename                 // gives tables other names
	verbPart                   // takes some rows of a table away, or brings some, without row events
	verbReshape                // gives a table other columns, and its rows other values, without row events
	verbTidy                   // changes a table and leaves its rows as they are
	verbDML                    // changes rows by statement
	verbUnknown                // nothing we know
)

// clocked reports whether the log clock counts the event of a statement: it makes
// room for a version between the rows before the statement and those behind it.
// What is counted is part of the data format, because a re-read must count the same.
func (v verb) clocked() bool {
	return v >= verbReplace && v <= verbTidy
}

// move is a table that gets another name.
type move struct{ from, to cdc.TableName }

// statement is what the log says in words rather than in rows.
type statement struct {
	verb   verb
	words  string          // the first words, for messages: "TRUNCATE TABLE"
	tables []cdc.TableName // the tables whose rows it takes, brings or changes
	moves  []move          // of verbRename, one after another
	db     string          // of verbDatabase
	// key names the columns of a new primary key; dropsKey says that the old one goes.
	key      []string
	dropsKey bool
}

// parseStatement reads as much of a statement as is needed to know what it does to
// captured tables without row events. It does not derive layouts: those come with
// the table maps. Names without a database are in db.
func parseStatement(query, db string) statement {
	t := tokens{rest: query}
	first := t.word()
	switch first {
	case "BEGIN":
		return statement{verb: verbBegin, words: first}
	case "START":
		return statement{verb: verbBegin, words: "START TRANSACTION"}
	case "COMMIT":
		return statement{verb: verbCommit, words: first}
	case "ROLLBACK":
		if w := t.word(); w == "TO" || w == "WORK" && t.word() == "TO" {
			return statement{verb: verbRollbackTo, words: "ROLLBACK TO"}
		}
		return statement{verb: verbRollback, words: first}
	case "SAVEPOINT", "RELEASE":
		return statement{verb: verbSavepoint, words: first}
	case "XA":
		return statement{verb: verbXA, words: first}
	case "TRUNCATE":
		name := t.next()
		if name.is("TABLE") {
			name = t.next()
		}
		return statement{verb: verbEmpty, words: "TRUNCATE TABLE", tables: []cdc.TableName{t.tableName(name, db)}}
	case "DROP":
		return parseDrop(&t, db)
	case "CREATE":
		return parseCreate(&t, db)
	case "RENAME":
		if w := t.word(); w != "TABLE" && w != "TABLES" { // RENAME USER
			return statement{words: first}
		}
		return statement{verb: verbRename, words: "RENAME TABLE", moves: t.moves(db)}
	case "ALTER":
		return parseAlter(&t, db)
	case "INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD", "IMPORT",
		"WITH", "SELECT", "DO", "CALL": // how a function that writes is logged
		return statement{verb: verbDML, words: first}
	case "", // a comment in the place of an event
		"GRANT", "REVOKE", "SET", "ANALYZE", "OPTIMIZE", "REPAIR", "FLUSH", "INSTALL", "UNINSTALL", "CACHE", "LOCK", "UNLOCK":
		return statement{words: first}
	}
	return statement{verb: verbUnknown, words: first}
}

// fold puts the names into lower case.
func (s *statement) fold() {
	lower := func(t *cdc.TableName) { t.DB, t.Table = strings.ToLower(t.DB), strings.ToLower(t.Table) }
	s.db = strings.ToLower(s.db)
	for i := range s.tables {
		lower(&s.tables[i])
	}
	for i := range s.moves {
		lower(&s.moves[i].from)
		lower(&s.moves[i].to)
	}
}

func parseDrop(t *tokens, db string) statement {
	what := t.word()
	switch what {
	case "TABLE", "TABLES":
		return statement{verb: verbDrop, words: "DROP TABLE", tables: t.names(db)}
	case "DATABASE", "SCHEMA":
		name := t.skipIfExists()
		return statement{verb: verbDatabase, words: "DROP DATABASE", db: name.text}
	}
	return statement{words: "DROP " + what} // TEMPORARY TABLE, VIEW, INDEX, USER, SEQUENCE, ...
}

func parseCreate(t *tokens, db string) statement {
	what := t.word()
	verb, words := verbCreate, "CREATE TABLE"
	if what == "OR" { // OR REPLACE
		t.next()
		what = t.word()
		verb, words = verbReplace, "CREATE OR REPLACE TABLE"
	}
	if what != "TABLE" { // TEMPORARY TABLE, VIEW, INDEX, USER, SEQUENCE, ...
		return statement{words: "CREATE " + what}
	}
	name := t.next()
	if name.is("IF") {
		verb, words, name = verbMayCreate, "CREATE TABLE IF NOT EXISTS", t.skipIfExists()
	}
	return statement{verb: verb, words: words, tables: []cdc.TableName{t.tableName(name, db)}}
}

func parseAlter(t *tokens, db string) statement {
	name := t.next()
	for name.is("ONLINE") || name.is("IGNORE") { // MariaDB
		name = t.next()
	}
	if !name.is("TABLE") {
		return statement{words: "ALTER " + strings.ToUpper(name.text)}
	}
	table := t.tableName(t.skipIfExists(), db)
	s := statement{verb: verbTidy, words: "ALTER TABLE", tables: []cdc.TableName{table}}
	if at := *t; !t.skipWait() {
		*t = at
	}
	for more := true; more; {
		var spec []token
		spec, more = t.spec()
		if s.alter(spec, db) {
			break
		}
	}
	return s
}

// alter takes in one of the changes of an ALTER TABLE. It reports whether what
// follows belongs to it: partitions are not altered together with anything else.
func (s *statement) alter(spec []token, db string) (last bool) {
	at := func(i int, words ...string) bool {
		for n, w := range words {
			if i+n >= len(spec) || !spec[i+n].is(w) {
				return false
			}
		}
		return true
	}
	oneOf := func(i int, words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return at(i, w) })
	}
	reshape := func() {
		if s.verb == verbTidy {
			s.verb = verbReshape
		}
	}
	named := func(i int) cdc.TableName {
		rest := tokens{ahead: spec[min(i, len(spec)):]}
		return rest.tableName(rest.next(), db)
	}
	part := func(what string, tables ...cdc.TableName) bool {
		s.verb, s.words, s.tables = verbPart, "ALTER TABLE ... "+what, append(s.tables, tables...)
		return true
	}
	switch {
	case len(spec) == 0:
	case at(0, "RENAME", "COLUMN"):
		reshape()
	case oneOf(0, "RENAME") && oneOf(1, "INDEX", "KEY"):
	case at(0, "RENAME"):
		to := 1
		if oneOf(1, "TO", "AS", "=") {
			to = 2
		}
		s.verb, s.words, s.moves = verbRename, "ALTER TABLE ... RENAME", []move{{s.tables[0], named(to)}}

	case at(0, "EXCHANGE", "PARTITION"):
		with := slices.IndexFunc(spec, func(t token) bool { return t.is("WITH") })
		return part("EXCHANGE PARTITION", named(with+2))
	case at(0, "CONVERT", "PARTITION"): // ... TO TABLE t: its rows leave for a new table (MariaDB)
		to := slices.IndexFunc(spec, func(t token) bool { return t.is("TO") })
		return part("CONVERT PARTITION", named(to+2))
	case at(0, "CONVERT", "TABLE"): // the table becomes a partition of this one (MariaDB)
		return part("CONVERT TABLE", named(2))
	case oneOf(0, "TRUNCATE", "DROP", "DISCARD", "IMPORT") && at(1, "PARTITION"), at(0, "IMPORT", "TABLESPACE"):
		return part(strings.ToUpper(spec[0].text) + " " + strings.ToUpper(spec[1].text))
	case at(0, "DISCARD", "TABLESPACE"):
		s.verb, s.words = verbEmpty, "ALTER TABLE ... DISCARD TABLESPACE"
		return true
	case oneOf(0, "ADD", "COALESCE", "REORGANIZE", "REBUILD", "OPTIMIZE", "ANALYZE", "CHECK", "REPAIR", "REMOVE") && oneOf(1, "PARTITION", "PARTITIONING"),
		at(0, "PARTITION"):
		return true

	case oneOf(0, "ADD", "MODIFY", "CHANGE"):
		i := slices.IndexFunc(spec, func(t token) bool { return t.is("PRIMARY") })
		switch {
		case i > 0 && (i == 1 || at(1, "CONSTRAINT")): // ADD [CONSTRAINT c] PRIMARY KEY (...)
			s.key = keyColumns(spec[i:])
		case oneOf(1, "INDEX", "KEY", "UNIQUE", "FULLTEXT", "SPATIAL", "CONSTRAINT", "FOREIGN", "CHECK"),
			at(1, "VECTOR") && oneOf(2, "INDEX", "KEY"):
		default:
			reshape()
			if i > 0 && at(i+1, "KEY") { // in the definition of a column
				s.key = []string{columnName(spec)}
			}
		}
	case at(0, "DROP", "PRIMARY"):
		s.dropsKey = true
	case at(0, "DROP") && oneOf(1, "INDEX", "KEY", "CONSTRAINT", "CHECK", "FOREIGN"), at(0, "ALTER"):
	case oneOf(0, tableOptions...):
	default: // DROP COLUMN, CONVERT TO CHARACTER SET, and whatever we do not know
		reshape()
	}
	return false
}

// tableOptions begin what an ALTER TABLE can change without a change of rows.
var tableOptions = []string{"ALGORITHM", "LOCK", "FORCE", "ENABLE", "DISABLE", "ORDER", "WITH", "WITHOUT",
	"ENGINE", "TYPE", "COMMENT", "AUTO_INCREMENT", "AUTOEXTEND_SIZE", "AVG_ROW_LENGTH", "CHECKSUM", "TABLE_CHECKSUM", "COMPRESSION", "CONNECTION", "DATA", "INDEX",
	"DEFAULT", "CHARACTER", "CHARSET", "COLLATE", "DELAY_KEY_WRITE", "ENCRYPTION", "ENCRYPTED", "ENCRYPTION_KEY_ID", "ENGINE_ATTRIBUTE", "SECONDARY_ENGINE", "SECONDARY_ENGINE_ATTRIBUTE",
	"SECONDARY_LOAD", "SECONDARY_UNLOAD", "INSERT_METHOD", "KEY_BLOCK_SIZE", "MAX_ROWS", "MIN_ROWS", "PACK_KEYS", "PAGE_CHECKSUM", "PAGE_COMPRESSED", "PAGE_COMPRESSION_LEVEL", "PASSWORD",
	"ROW_FORMAT", "STATS_AUTO_RECALC", "STATS_PERSISTENT", "STATS_SAMPLE_PAGES", "STORAGE", "TABLESPACE", "TRANSACTIONAL", "UNION"}

// cascading reports whether a statement that makes or alters a table has a foreign key
// that changes rows by itself.
func cascading(query string) bool {
	t := tokens{rest: query}
	for tok := t.next(); !tok.end(); tok = t.next() {
		for tok.is("ON") {
			if tok = t.next(); !tok.is("DELETE") && !tok.is("UPDATE") {
				continue
			}
			if tok = t.next(); tok.is("CASCADE") {
				return true
			}
			if tok.is("SET") {
				if tok = t.next(); tok.is("NULL") {
					return true
				}
			}
		}
	}
	return false
}

// keyColumns are the columns of PRIMARY KEY [USING ...] (a, b(10) DESC).
func keyColumns(spec []token) (columns []string) {
	depth := 0
	for i, tok := range spec {
		switch {
		case !tok.quoted && tok.text == "(":
			depth++
		case !tok.quoted && tok.text == ")":
			if depth--; depth == 0 {
				return columns
			}
		case depth == 1 && (spec[i-1].sign("(") || spec[i-1].sign(",")):
			columns = append(columns, tok.text)
		}
	}
	return columns
}

// columnName is that of ADD, MODIFY or CHANGE [COLUMN] [IF [NOT] EXISTS]; the new one of CHANGE.
func columnName(spec []token) string {
	rest := tokens{ahead: spec[1:]}
	name := rest.skipIfExists()
	if name.is("COLUMN") {
		name = rest.skipIfExists()
	}
	if spec[0].is("CHANGE") {
		name = rest.next()
	}
	return name.text
}

// token is a word, a quoted name or a single sign.
type token struct {
	text   string
	quoted bool
}

func (t token) is(keyword string) bool { return !t.quoted && strings.EqualFold(t.text, keyword) }

func (t token) sign(s string) bool { return !t.quoted && t.text == s }

func (t token) end() bool { return t.text == "" && !t.quoted }

// tokens splits a statement. Comments are left out, but what stands in an
// executable comment (/*!80013 ... */) is read.
type tokens struct {
	ahead []token // split already
	rest  string
}

func (t *tokens) word() string {
	tok := t.next()
	if tok.quoted {
		return ""
	}
	return strings.ToUpper(tok.text)
}

func (t *tokens) next() token {
	if len(t.ahead) > 0 {
		tok := t.ahead[0]
		t.ahead = t.ahead[1:]
		return tok
	}
	for {
		t.rest = strings.TrimLeft(t.rest, " \t\r\n\f\v")
		switch {
		case t.rest == "":
			return token{}
		case strings.HasPrefix(t.rest, "/*!") || strings.HasPrefix(t.rest, "/*M!"):
			t.rest = strings.TrimLeft(t.rest[strings.IndexByte(t.rest, '!')+1:], "0123456789")
			continue
		case strings.HasPrefix(t.rest, "*/"):
			t.rest = t.rest[2:]
			continue
		case strings.HasPrefix(t.rest, "/*"):
			t.rest = after(t.rest[2:], "*/")
			continue
		case strings.HasPrefix(t.rest, "--") && (len(t.rest) == 2 || t.rest[2] <= ' '), strings.HasPrefix(t.rest, "#"):
			t.rest = after(t.rest, "\n")
			continue
		}
		break
	}
	if q := t.rest[0]; q == '`' || q == '"' || q == '\'' {
		return t.quotedToken(q)
	}
	n := 0
	for n < len(t.rest) && isWord(t.rest[n]) {
		n++
	}
	if n == 0 {
		n = 1
	}
	tok := token{text: t.rest[:n]}
	t.rest = t.rest[n:]
	return tok
}

func (t *tokens) quotedToken(q byte) token {
	var b strings.Builder
	s := t.rest[1:]
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && q != '`' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == q && i+1 < len(s) && s[i+1] == q:
			i++
			b.WriteByte(q)
		case s[i] == q:
			t.rest = s[i+1:]
			return token{b.String(), true}
		default:
			b.WriteByte(s[i])
		}
	}
	t.rest = ""
	return token{b.String(), true}
}

// skipIfExists reads past IF [NOT] EXISTS.
func (t *tokens) skipIfExists() token {
	tok := t.next()
	for tok.is("IF") || tok.is("NOT") || tok.is("EXISTS") {
		tok = t.next()
	}
	return tok
}

// tableName reads "name" or "db.name", of which first is already read.
func (t *tokens) tableName(first token, db string) cdc.TableName {
	before := *t
	if t.next().sign(".") {
		return cdc.TableName{DB: first.text, Table: t.next().text}
	}
	*t = before
	return cdc.TableName{DB: db, Table: first.text}
}

// names reads [IF EXISTS] name, name ...
func (t *tokens) names(db string) (names []cdc.TableName) {
	for tok := t.skipIfExists(); !tok.end(); tok = t.next() {
		names = append(names, t.tableName(tok, db))
		if !t.next().sign(",") { // RESTRICT, CASCADE, WAIT n, or the end
			break
		}
	}
	return names
}

// moves reads [IF EXISTS] name [WAIT n | NOWAIT] TO name, ...
func (t *tokens) moves(db string) (moves []move) {
	for tok := t.skipIfExists(); !tok.end(); tok = t.next() {
		m := move{from: t.tableName(tok, db)}
		for tok = t.next(); !tok.is("TO"); tok = t.next() {
			if tok.end() {
				return moves
			}
		}
		m.to = t.tableName(t.next(), db)
		moves = append(moves, m)
		if !t.next().sign(",") {
			break
		}
	}
	return moves
}

// skipWait reads past WAIT n or NOWAIT (MariaDB), and reports whether it was there.
func (t *tokens) skipWait() bool {
	switch tok := t.next(); {
	case tok.is("WAIT"):
		t.next()
		return true
	default:
		return tok.is("NOWAIT")
	}
}

// spec reads up to the next comma outside of brackets, and reports whether there is
// one.
func (t *tokens) spec() (spec []token, more bool) {
	for depth := 0; ; {
		tok := t.next()
		switch {
		case tok.end(), depth == 0 && tok.sign(";"):
			return spec, false
		case depth == 0 && tok.sign(","):
			return spec, true
		case tok.sign("("):
			depth++
		case tok.sign(")"):
			depth--
		}
		spec = append(spec, tok)
	}
}

func isWord(b byte) bool {
	return b == '_' || b == '$' || b >= 0x80 || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

func after(s, sep string) string {
	if _, rest, ok := strings.Cut(s, sep); ok {
		return rest
	}
	return ""
}

package mysql

import (
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
	verbAlter                  // changes the shape of a table; rows may change without row events
	verbTableWide              // empties, drops or replaces a table as a whole
	verbDatabase               // drops a database
	verbDML                    // changes rows by statement
	verbUnknown                // nothing we know
)

// statement is what the log says in words rather than in rows.
type statement struct {
	verb   verb
	words  string          // the first words, for messages: "TRUNCATE TABLE"
	tables []cdc.TableName // the tables it names
	db     string          // of verbDatabase
}

// parseStatement reads as much of a statement as is needed to know whether it
// changes rows of a captured table without row events. It does not derive
// layouts: those come with the table maps. Names without a database are in db.
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
		return statement{verb: verbTableWide, words: "TRUNCATE TABLE", tables: []cdc.TableName{t.tableName(name, db)}}
	case "DROP":
		return parseDrop(&t, db)
	case "CREATE":
		return parseCreate(&t, db)
	case "RENAME":
		if w := t.word(); w != "TABLE" && w != "TABLES" { // RENAME USER
			return statement{words: first}
		}
		return statement{verb: verbTableWide, words: "RENAME TABLE", tables: t.names(db, "TO")}
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
	s.db = strings.ToLower(s.db)
	for i, t := range s.tables {
		s.tables[i] = cdc.TableName{DB: strings.ToLower(t.DB), Table: strings.ToLower(t.Table)}
	}
}

func parseDrop(t *tokens, db string) statement {
	what := t.word()
	switch what {
	case "TABLE", "TABLES":
	case "DATABASE", "SCHEMA":
		name := t.skipIfExists()
		return statement{verb: verbDatabase, words: "DROP DATABASE", db: name.text}
	default: // TEMPORARY TABLE, VIEW, INDEX, USER, ...
		return statement{words: "DROP " + what}
	}
	s := statement{verb: verbTableWide, words: "DROP TABLE"}
	name := t.skipIfExists()
	s.tables = append(s.tables, t.tableName(name, db))
	s.tables = append(s.tables, t.names(db, ",")...)
	return s
}

func parseCreate(t *tokens, db string) statement {
	what := t.word()
	if what == "OR" { // OR REPLACE
		t.next()
		what = t.word()
	}
	if what != "TABLE" { // TEMPORARY TABLE, VIEW, INDEX, USER, ...
		return statement{words: "CREATE " + what}
	}
	name := t.next()
	if name.is("IF") { // IF NOT EXISTS is logged for a table that exists, too
		return statement{words: "CREATE TABLE IF NOT EXISTS"}
	}
	return statement{verb: verbCreate, words: "CREATE TABLE", tables: []cdc.TableName{t.tableName(name, db)}}
}

// tableWideAlter are the words after which an ALTER TABLE removes or replaces
// rows without row events.
var tableWideAlter = map[string]bool{"TRUNCATE": true, "EXCHANGE": true, "DISCARD": true, "IMPORT": true}

func parseAlter(t *tokens, db string) statement {
	name := t.next()
	for name.is("ONLINE") || name.is("IGNORE") { // MariaDB
		name = t.next()
	}
	if !name.is("TABLE") {
		return statement{words: "ALTER " + strings.ToUpper(name.text)}
	}
	s := statement{verb: verbAlter, words: "ALTER TABLE"}
	s.tables = []cdc.TableName{t.tableName(t.skipIfExists(), db)}
	var last token
	for {
		tok := t.next()
		if tok.text == "" && !tok.quoted {
			return s
		}
		if !last.quoted {
			switch before := strings.ToUpper(last.text); {
			case tableWideAlter[before] && (tok.is("PARTITION") || tok.is("TABLESPACE")), before == "DROP" && tok.is("PARTITION"):
				s.verb, s.words = verbTableWide, "ALTER TABLE ... "+before
			case before == "RENAME" && !tok.is("COLUMN") && !tok.is("INDEX") && !tok.is("KEY"):
				if tok.is("TO") || tok.is("AS") || tok.text == "=" {
					tok = t.next()
				}
				s.verb, s.words = verbTableWide, "ALTER TABLE ... RENAME"
				s.tables = append(s.tables, t.tableName(tok, db))
			case before == "WITH" && tok.is("TABLE"): // EXCHANGE PARTITION p WITH TABLE t
				s.tables = append(s.tables, t.tableName(t.next(), db))
			}
		}
		last = tok
	}
}

// token is a word, a quoted name or a single sign.
type token struct {
	text   string
	quoted bool
}

func (t token) is(keyword string) bool { return !t.quoted && strings.EqualFold(t.text, keyword) }

// tokens splits a statement. Comments are left out, but what stands in an
// executable comment (/*!80013 ... */) is read.
type tokens struct{ rest string }

func (t *tokens) word() string {
	tok := t.next()
	if tok.quoted {
		return ""
	}
	return strings.ToUpper(tok.text)
}

func (t *tokens) next() token {
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
	rest := t.rest
	if dot := t.next(); !dot.quoted && dot.text == "." {
		return cdc.TableName{DB: first.text, Table: t.next().text}
	}
	t.rest = rest
	return cdc.TableName{DB: db, Table: first.text}
}

// names reads table names up to the end; separators and the given word are left
// out.
func (t *tokens) names(db, between string) []cdc.TableName {
	var names []cdc.TableName
	for {
		tok := t.next()
		if tok.text == "" && !tok.quoted {
			return names
		}
		if !tok.quoted && (tok.text == "," || tok.text == ";") || tok.is(between) ||
			tok.is("RESTRICT") || tok.is("CASCADE") || tok.is("IF") || tok.is("EXISTS") || tok.is("WAIT") || tok.is("NOWAIT") {
			continue
		}
		names = append(names, t.tableName(tok, db))
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

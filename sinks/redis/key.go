package redis

import (
	"strings"

	"lockstep/cdc"
)

// Keys of ours that are no rows. No row's key may begin like them.
const (
	ownPrefix = "lockstep:"
	// deletedPrefix begins the companions of hashes and JSON strings, which hold the
	// versions of deleted rows.
	deletedPrefix = ownPrefix + "t:"
	// versionPrefix and the table begin the companions of the other shapes.
	versionPrefix = ownPrefix + "v:"
	// forgetPrefix and the table begin the lists of removed members.
	forgetPrefix = ownPrefix + "x:"
)

// beside names a key that belongs to key: a prefix and the key itself. Different
// keys have different ones, and in a cluster it lives in the key's slot; slotted is
// false for the one shape of key for which there is no such name: a "}" in it and
// no hash tag. A prefix has no brace in it.
func beside(prefix, key string) (name string, slotted bool) {
	if tagged(key) {
		return prefix + ":" + key, true
	}
	return prefix + "{" + key + "}", key != "" && !strings.Contains(key, "}")
}

// besideWhat is the key that a name made by beside belongs to.
func besideWhat(prefix, name string) (key string, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok || rest == "" {
		return "", false
	}
	if rest[0] == ':' {
		return rest[1:], tagged(rest[1:])
	}
	if rest[0] == '{' && rest[len(rest)-1] == '}' {
		return rest[1 : len(rest)-1], !tagged(rest[1 : len(rest)-1])
	}
	return "", false
}

// companion names the key that holds the version of the row key once it is
// deleted, in a hash or a JSON string.
func companion(key string) (name string, slotted bool) { return beside(deletedPrefix, key) }

// escapeTable keeps the braces of a hash tag, and the ":" behind it, to the key.
var escapeTable = strings.NewReplacer("%", "%25", ":", "%3A", "{", "%7B", "}", "%7D")

// ofTable is a prefix for the keys of one table.
func ofTable(prefix string, name cdc.TableName) string {
	return prefix + escapeTable.Replace(name.String()) + ":"
}

// tagged reports whether a cluster hashes only a part of key: the text between
// the first "{" and the first "}" behind it, unless that is empty.
func tagged(key string) bool {
	open := strings.IndexByte(key, '{')
	return open >= 0 && strings.IndexByte(key[open+1:], '}') > 0
}

var escapeGlob = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)

// glob is the pattern of SCAN that matches every key of a well-formed template.
func glob(template, db, table string) string {
	var b strings.Builder
	for i := 0; i < len(template); {
		switch {
		case strings.HasPrefix(template[i:], "{{"), strings.HasPrefix(template[i:], "}}"):
			b.WriteByte(template[i])
			i += 2
		case template[i] == '{':
			end := i + strings.IndexByte(template[i:], '}')
			switch template[i+1 : end] {
			case "db":
				b.WriteString(escapeGlob.Replace(db))
			case "table":
				b.WriteString(escapeGlob.Replace(table))
			default:
				b.WriteByte('*')
			}
			i = end + 1
		default:
			b.WriteString(escapeGlob.Replace(template[i : i+1]))
			i++
		}
	}
	return b.String()
}

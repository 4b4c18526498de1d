package redis

import "strings"

// companionPrefix begins the keys that hold the versions of deleted rows.
const companionPrefix = "lockstep:t:"

// companion names the key that holds the version of the row key once it is
// deleted. Different keys have different companions, and in a cluster the
// companion lives in the key's slot; slotted is false for the one shape of key for
// which there is no such name: a "}" in it and no hash tag.
func companion(key string) (name string, slotted bool) {
	if tagged(key) {
		return companionPrefix + ":" + key, true
	}
	return companionPrefix + "{" + key + "}", key != "" && !strings.Contains(key, "}")
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

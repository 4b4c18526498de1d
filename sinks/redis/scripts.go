package redis

import (
	"crypto/sha1"
	"encoding/hex"
)

// Every script reads the stored version, leaves a version that is not older
// alone and answers with it, or writes and answers 0. No version is 0.
//
//	KEYS[1] the row's key      ARGV[1] the change's version
//	KEYS[2] its companion      ARGV[2] ... what is written
//
// The companion holds the version of a deleted row and is asked only when the
// live key has none. Versions are below 2^53, so that tonumber is exact.
//
// The first line makes the server refuse an upsert under memory pressure before
// it has done anything: without it, the check for each command is off as soon as
// a script has written, and DEL counts as having written. A delete may run, for
// it makes room.
const (
	upsertHead = "#!lua\n"
	deleteHead = "#!lua flags=allow-oom\n"

	hashVersion = `local stored = string.match(redis.call('HGET', KEYS[1], '_lockstep_v') or '', '^%d+$')`
	// Only the tail is read, and the pattern is anchored at its end, so a text
	// inside the row cannot be taken for the version.
	jsonVersion = `local stored = string.match(redis.call('GETRANGE', KEYS[1], -48, -1), ',"_lockstep":{"v":(%d+)}}$')`

	remembered = `
if not stored then
	stored = string.match(redis.call('GET', KEYS[2]) or '', '^%d+$')
end
`
	guard = remembered + `
if stored and tonumber(stored) >= tonumber(ARGV[1]) then
	return tonumber(stored)
end
`
	// A sweep takes a row of its own version, too.
	sweepGuard = remembered + `
if stored and tonumber(stored) > tonumber(ARGV[1]) then
	return tonumber(stored)
end
`
	// DEL first, so that columns the table has lost vanish. unpack is limited by
	// Lua's stack, so a wide row goes in pieces; 1000 keeps field and value together.
	writeHash = `
redis.call('DEL', KEYS[1], KEYS[2])
for i = 2, #ARGV, 1000 do
	redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
return 0
`
	writeJSON = `
redis.call('SET', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2])
return 0
`
	writeDelete = `
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 0
`
)

// script is a Lua script and the digest by which EVALSHA calls it.
type script struct {
	text   string
	digest string
}

func newScript(text string) script {
	sum := sha1.Sum([]byte(text))
	return script{text, hex.EncodeToString(sum[:])}
}

var (
	upsertHash = newScript(upsertHead + hashVersion + guard + writeHash)
	upsertJSON = newScript(upsertHead + jsonVersion + guard + writeJSON)
	deleteHash = newScript(deleteHead + hashVersion + guard + writeDelete)
	deleteJSON = newScript(deleteHead + jsonVersion + guard + writeDelete)
	sweepHash  = newScript(deleteHead + hashVersion + sweepGuard + writeDelete)
	sweepJSON  = newScript(deleteHead + jsonVersion + sweepGuard + writeDelete)

	scripts = []script{upsertHash, upsertJSON, deleteHash, deleteJSON, sweepHash, sweepJSON}
)

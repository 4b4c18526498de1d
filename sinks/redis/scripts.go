package redis

import (
	"crypto/sha1"
	"encoding/hex"
	"strings"
)

// Every script reads the stored version, leaves a version that is not older
// alone and answers with it, or writes and answers 0. No version is 0.
//
//	KEYS[1] the row's key      ARGV[1] the change's version
//	KEYS[2] its companion      ARGV[2] ... what is written
//
// Versions are below 2^53, so that tonumber is exact.
//
// The first line makes the server refuse an upsert under memory pressure before
// it has done anything: without it, the check for each command is off as soon as
// a script has written, and DEL counts as having written. A delete may run, for
// it makes room.
const (
	upsertHead = "#!lua\n"
	deleteHead = "#!lua flags=allow-oom\n"

	guard = `
if stored and tonumber(stored) >= tonumber(ARGV[1]) then
	return tonumber(stored)
end
`
	// A sweep takes a row of its own version, too.
	sweepGuard = `
if stored and tonumber(stored) > tonumber(ARGV[1]) then
	return tonumber(stored)
end
`
)

// A hash and a JSON string have the version in the value. The companion holds the
// version of a deleted row and is asked only when the live key has none.
const (
	remembered = `
if not stored then
	stored = string.match(redis.call('GET', KEYS[2]) or '', '^%d+$')
end
`
	hashVersion = `local stored = string.match(redis.call('HGET', KEYS[1], '_lockstep_v') or '', '^%d+$')` + remembered
	// Only the tail is read, and the pattern is anchored at its end, so a text
	// inside the row cannot be taken for the version.
	jsonVersion = `local stored = string.match(redis.call('GETRANGE', KEYS[1], -48, -1), ',"_lockstep":{"v":(%d+)}}$')` + remembered

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

// A text has its version in the companion, which lives as long as the text.
// STRLEN refuses a key of another type, which SET and DEL would take.
const (
	textVersion = `
redis.call('STRLEN', KEYS[1])
` + besideVersion
	besideVersion = `
local stored = string.match(redis.call('GET', KEYS[2]) or '', '^%d+$')
`
	writeText = `
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[1])
return 0
`
	// What has a companion without a key was deleted already.
	onlyLive = `
if redis.call('EXISTS', KEYS[1]) == 0 then
	return tonumber(stored) or 1
end
`
)

// A stream has the version of its newest entry as that entry's id, epoch-seq, and
// remembers it when the entry is gone. XADD is the guard: it refuses an id that is
// not higher. What the last id is, is asked only then, and a stream whose ids are
// no versions was not written here. The stream of a deleted row expires.
//
//	ARGV[2] the time to live after a delete   ARGV[3] the id
//	ARGV[4] how many entries are kept         ARGV[5] the operation, ARGV[6] the row
const (
	streamLast = `
local function last()
	local info = redis.call('XINFO', 'STREAM', KEYS[1])
	for i = 1, #info, 2 do
		if info[i] == 'last-generated-id' then
			local epoch, seq = string.match(info[i + 1], '^(%d+)-(%d+)$')
			epoch, seq = tonumber(epoch), tonumber(seq)
			if epoch > 2047 or seq >= 4398046511104 then
				return nil
			end
			return epoch * 4398046511104 + seq
		end
	end
end
`
	streamForeign = `redis.error_reply('WRONGTYPE the ids of the stream are not versions, so it was not written here')`
	writeEntry    = streamLast + `
local added
if ARGV[5] == 'd' then
	added = redis.pcall('XADD', KEYS[1], 'MAXLEN', ARGV[4], ARGV[3], 'op', 'd')
else
	added = redis.pcall('XADD', KEYS[1], 'MAXLEN', ARGV[4], ARGV[3], 'op', ARGV[5], 'row', ARGV[6])
end
if type(added) == 'table' and added.err then
	if redis.call('EXISTS', KEYS[1]) == 0 then
		return added
	end
	local stored = last()
	if not stored then
		return ` + streamForeign + `
	end
	if stored < tonumber(ARGV[1]) then
		return added
	end
	return stored
end
`
	keepStream = `
redis.call('PERSIST', KEYS[1])
return 0
`
	endStream = `
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 0
`
	// An entry of the sweep's own version gives way, and the history with it, for
	// no two entries have one id.
	sweepEntry = streamLast + `
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local stored = last()
if not stored then
	return ` + streamForeign + `
end
if stored > tonumber(ARGV[1]) or not newest[1] or newest[1][2][2] == 'd' then
	return stored
end
if stored == tonumber(ARGV[1]) then
	redis.call('DEL', KEYS[1])
end
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[4], ARGV[3], 'op', 'd')
` + endStream
)

// The members of a set have their versions in a hash beside it, those that were
// removed as well; a sorted set beside that says when these may be forgotten. Each
// call forgets a few that are due, and both expire when the set is empty.
//
//	KEYS[3] the removed members by the time they may be forgotten
//	ARGV[2] that time to live   ARGV[3] the member   ARGV[4] its score
const (
	memberVersion = `
local stored = string.match(redis.call('HGET', KEYS[2], ARGV[3]) or '', '^%d+$')
`
	joinSet = `
redis.call('SADD', KEYS[1], ARGV[3])
redis.call('ZREM', KEYS[3], ARGV[3])
`
	joinSorted = `
redis.call('ZADD', KEYS[1], ARGV[4], ARGV[3])
redis.call('ZREM', KEYS[3], ARGV[3])
`
	clock = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
`
	leaveSet    = clock + "redis.call('SREM', KEYS[1], ARGV[3])" + forgetLater
	leaveSorted = clock + "redis.call('ZREM', KEYS[1], ARGV[3])" + forgetLater
	sweepSet    = clock + "if redis.call('SREM', KEYS[1], ARGV[3]) == 0 then return tonumber(stored) or 1 end" + forgetLater
	sweepSorted = clock + "if redis.call('ZREM', KEYS[1], ARGV[3]) == 0 then return tonumber(stored) or 1 end" + forgetLater
	forgetLater = `
redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[3])
`
	keepVersions = `
redis.call('HSET', KEYS[2], ARGV[3], ARGV[1])
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 16)) do
	redis.call('HDEL', KEYS[2], member)
	redis.call('ZREM', KEYS[3], member)
end
if redis.call('EXISTS', KEYS[1]) == 0 then
	redis.call('PEXPIRE', KEYS[2], ARGV[2])
	redis.call('PEXPIRE', KEYS[3], ARGV[2])
else
	redis.call('PERSIST', KEYS[2])
	redis.call('PERSIST', KEYS[3])
end
return 0
`
)

// What an application caches is deleted, or marked in a field when it is a hash.
// The companion always expires: what is invalidated once too often is read again.
//
//	ARGV[2] the time to live   ARGV[3] the field, if there is one
const (
	invalidateKey = `
if ARGV[3] and redis.call('EXISTS', KEYS[1]) == 1 then
	redis.call('HSET', KEYS[1], ARGV[3], '1')
elseif not ARGV[3] then
	redis.call('DEL', KEYS[1])
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 0
`
	sweepCached = `
local gone = redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if gone == 0 then
	return tonumber(stored) or 1
end
return 0
`
)

// SetIfNewer is the script by which an application that fills its cache from the
// source avoids keeping what an invalidation has overtaken: see docs/redis.md.
const SetIfNewer = `#!lua
local stored = tonumber(string.match(redis.call('GET', KEYS[2]) or '', '^%d+$') or '0')
if stored > tonumber(ARGV[1]) then
	return 0
end
if #ARGV == 3 then
	redis.call('SET', KEYS[1], ARGV[3])
else
	redis.call('DEL', KEYS[1])
	redis.call('HSET', KEYS[1], unpack(ARGV, 3))
end
local ttl = tonumber(ARGV[2])
if ttl == 0 then
	redis.call('SET', KEYS[2], string.format('%d', stored))
	return 1
end
redis.call('PEXPIRE', KEYS[1], ttl)
local left = redis.call('PTTL', KEYS[2])
if left == -2 then
	redis.call('SET', KEYS[2], '0', 'PX', ttl)
elseif left >= 0 and left < ttl then
	redis.call('PEXPIRE', KEYS[2], ttl)
end
return 1
`

// What is only read has a script for each shape, so that version and value are of one
// moment. They answer with the version, "0" for none; whether the row is there, or
// why that cannot be told; how many bytes it has; and its value when these are not
// more than ARGV[1]. ARGV[3] is the member of a set.
const (
	readHead = "#!lua flags=no-writes\n"
	readHash = `
local row, size = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #row do
	size = size + #row[i]
end
return {stored or '0', #row > 0 and 1 or 0, size, size <= tonumber(ARGV[1]) and row or {}}
`
	readText = `
local size = redis.call('STRLEN', KEYS[1])
return {stored or '0', redis.call('EXISTS', KEYS[1]), size, size <= tonumber(ARGV[1]) and {redis.call('GET', KEYS[1]) or ''} or {}}
`
	readEntry = streamLast + `
if redis.call('EXISTS', KEYS[1]) == 0 then
	return {'0', 0, 0, {}}
end
local newest, stored = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1], last()
if not stored then
	return ` + streamForeign + `
end
stored = string.format('%.0f', stored)
if not newest or newest[2][2] == 'd' then
	return {stored, 0, 0, {}}
end
local row = newest[2][4] or ''
return {stored, 1, #row, #row <= tonumber(ARGV[1]) and {row} or {}}
`
	readSet = `
local there = redis.pcall('SISMEMBER', KEYS[1], ARGV[3])
return {stored or '0', type(there) == 'table' and there.err or there, 0, {}}
`
	readSorted = `
local score = redis.pcall('ZSCORE', KEYS[1], ARGV[3])
return {stored or '0', type(score) == 'table' and score.err or score and 1 or 0, 0, {type(score) == 'string' and score or ''}}
`
	readCached = `
return {stored or '0', redis.call('EXISTS', KEYS[1]), 0, {}}
`
)

// What somebody else has written under a version that no change can outrank is let go of,
// as long as it is that version.
const (
	freeRow = `
if stored == ARGV[1] then
	redis.call('DEL', KEYS[1], KEYS[2])
end
return 0
`
	freeStream = streamLast + `
if redis.call('EXISTS', KEYS[1]) == 1 and string.format('%.0f', last() or 0) == ARGV[1] then
	redis.call('DEL', KEYS[1])
end
return 0
`
	freeMember = `
if stored == ARGV[1] then
	redis.call('HDEL', KEYS[2], ARGV[3])
	redis.call('ZREM', KEYS[3], ARGV[3])
	redis.call(LEAVE, KEYS[1], ARGV[3])
end
return 0
`
)

// script is a Lua script and the digest by which EVALSHA calls it.
type script struct {
	text   string
	digest string
}

// scripts are all that a server has to know.
var scripts []script

func newScript(text string) script {
	sum := sha1.Sum([]byte(text))
	s := script{text, hex.EncodeToString(sum[:])}
	scripts = append(scripts, s)
	return s
}

// verbs are the scripts of a shape.
type verbs struct{ upsert, remove, sweep, read, free script }

var shapes = map[string]verbs{
	ModeHash: {
		newScript(upsertHead + hashVersion + guard + writeHash),
		newScript(deleteHead + hashVersion + guard + writeDelete),
		newScript(deleteHead + hashVersion + sweepGuard + writeDelete),
		newScript(readHead + hashVersion + readHash),
		newScript(deleteHead + hashVersion + freeRow),
	},
	ModeJSON: {
		newScript(upsertHead + jsonVersion + guard + writeJSON),
		newScript(deleteHead + jsonVersion + guard + writeDelete),
		newScript(deleteHead + jsonVersion + sweepGuard + writeDelete),
		newScript(readHead + jsonVersion + readText),
		newScript(deleteHead + jsonVersion + freeRow),
	},
	ModeString: {
		newScript(upsertHead + textVersion + guard + writeText),
		newScript(deleteHead + textVersion + guard + writeDelete),
		newScript(deleteHead + textVersion + sweepGuard + onlyLive + writeDelete),
		newScript(readHead + textVersion + readText),
		newScript(deleteHead + textVersion + freeRow),
	},
	ModeStream: {
		newScript(upsertHead + writeEntry + keepStream),
		newScript(deleteHead + writeEntry + endStream),
		newScript(deleteHead + sweepEntry),
		newScript(readHead + readEntry),
		newScript(deleteHead + freeStream),
	},
	ModeSet: {
		newScript(upsertHead + memberVersion + guard + clock + joinSet + keepVersions),
		newScript(deleteHead + memberVersion + guard + leaveSet + keepVersions),
		newScript(deleteHead + memberVersion + sweepGuard + sweepSet + keepVersions),
		newScript(readHead + memberVersion + readSet),
		newScript(deleteHead + memberVersion + strings.Replace(freeMember, "LEAVE", "'SREM'", 1)),
	},
	ModeZset: {
		newScript(upsertHead + memberVersion + guard + clock + joinSorted + keepVersions),
		newScript(deleteHead + memberVersion + guard + leaveSorted + keepVersions),
		newScript(deleteHead + memberVersion + sweepGuard + sweepSorted + keepVersions),
		newScript(readHead + memberVersion + readSorted),
		newScript(deleteHead + memberVersion + strings.Replace(freeMember, "LEAVE", "'ZREM'", 1)),
	},
	ModeInvalidate: {
		newScript(deleteHead + besideVersion + guard + invalidateKey),
		newScript(deleteHead + besideVersion + guard + invalidateKey),
		newScript(deleteHead + besideVersion + sweepGuard + sweepCached),
		newScript(readHead + besideVersion + readCached),
		newScript(deleteHead + besideVersion + freeRow),
	},
}

// UpsertScript is the text of the script that writes a row of a shape, for whoever wants to
// measure what it costs.
func UpsertScript(mode string) string { return shapes[mode].upsert.text }

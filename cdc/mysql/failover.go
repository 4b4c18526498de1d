package mysql

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/google/uuid"

	"lockstep/cdc"
)

// OnGapResnapshot tells a Source to copy every table again where the log has a gap.
const OnGapResnapshot = "resnapshot"

// verdict is what a server's log means for a position.
type verdict string

const (
	// goesOn: the log goes on where the position ends, and the clock with it.
	goesOn verdict = "goes on"
	// switched: another server has everything that was read. Its log goes on from
	// there, but its bytes are counted anew.
	switched verdict = "switched"
	// catchingUp: a replica lacks transactions that were read, and may still get them.
	catchingUp verdict = "catching up"
	// tailLost: transactions that were read are not there and will not come.
	tailLost verdict = "tail lost"
	// gap: transactions that were not read are not in the log any more.
	gap verdict = "gap"
)

// judge compares what was read of a server of that flavor and id with what a
// server has. With a gap comes what is missing, with catchingUp and tailLost what
// was read and is not there.
func judge(flavor, id string, read gtidSet, now *server) (verdict, gtidSet) {
	if cmp.Or(flavor, flavorMySQL) != now.flavor {
		return gap, now.executed // its numbers mean nothing to the other kind
	}
	missing, ghosts := now.purged.minus(read), read.minus(now.executed)
	switch {
	case !missing.empty(): // whatever else is wrong, reading on would leave this out
		return gap, missing
	case !ghosts.empty() && now.applying:
		return catchingUp, ghosts
	case !ghosts.empty():
		return tailLost, ghosts
	case id != now.id:
		return switched, ghosts
	}
	return goesOn, ghosts
}

// takeUp makes the position fit the server that answers, or says why it cannot.
// It holds the lock of the snapshots, because it may change the epoch: a chunk is
// read either before, or under the new one.
func (s *Source) takeUp(ctx context.Context, conn *client.Conn, now *server, tables []cdc.TableName) error {
	s.snaps.mu.Lock()
	defer s.snaps.mu.Unlock()
	if s.Resnapshot {
		if err := s.anew(ctx, now, tables, "resnapshot asked for"); err != nil {
			return err
		}
		s.Resnapshot = false
		return nil
	}
	found, gtids := judge(s.pos.Flavor, s.pos.ServerUUID, s.gtids, now)
	if found == goesOn || found == tailLost && now.id == s.pos.ServerUUID {
		reused, err := s.reused(ctx, now, found)
		if err != nil {
			return lost(err)
		}
		if reused != "" {
			return s.overGap(ctx, now, tables, fmt.Sprintf("the server at %s gives the numbers of transactions that were read to other ones since (%s); its log was reset, or it is a restored copy", s.Config.Addr, reused))
		}
	}
	switch found {
	case goesOn:
		if s.pos.Replaced == 0 {
			return nil
		}
		tail, err := s.scanTail(ctx, now, s.pos.Replaced)
		s.published = tail.published
		return err
	case catchingUp:
		return s.behind(gtids)
	case gap:
		what := fmt.Sprintf("the server at %s has purged log that was not read yet: %s is missing between the saved position (%s) and the oldest log; %s", s.Config.Addr, gtids, s.gtids, headroom(conn, now))
		if cmp.Or(s.pos.Flavor, flavorMySQL) != now.flavor {
			what = fmt.Sprintf("the server at %s is %s, but the saved position is of %s", s.Config.Addr, now.title(), s.pos.ServerUUID)
		}
		return s.overGap(ctx, now, tables, what)
	}
	return s.switchTo(ctx, now, tables, gtids)
}

// behind says that a replica may still get what it lacks; Run tries again.
func (s *Source) behind(lacks gtidSet) error {
	return &lostError{fmt.Errorf("the server at %s is a replica that has not applied yet what was read from %s: %s; waiting for it (should those transactions be lost, stop its replication and they are repaired)",
		s.Config.Addr, s.pos.ServerUUID, lacks)}
}

// overGap goes on behind a gap when the operator has allowed it.
func (s *Source) overGap(ctx context.Context, now *server, tables []cdc.TableName, what string) error {
	if s.OnGap != OnGapResnapshot {
		return stopf("lockstep run --on-gap resnapshot (copies every table again under a new epoch, and then removes from the sinks what is not in the source any more)", "%s", what)
	}
	s.Log.Warn("going on behind a gap with a new copy of every table, as told by --on-gap", "gap", what)
	return s.anew(ctx, now, tables, "gap in the log")
}

// headroom says how long the server keeps its log.
func headroom(c *client.Conn, now *server) string {
	said := fmt.Sprintf("the server has %s and keeps its log from behind %s on", now.executed, shown(now.purged.String()))
	if keep := now.keeps(); keep > 0 {
		said += fmt.Sprintf(", for %s (binlog_expire_logs_seconds)", keep)
	}
	if logs, err := queryRows(c, "SHOW BINARY LOGS"); err == nil && len(logs) > 0 {
		said += fmt.Sprintf(", in %d files since %s", len(logs), logs[0][0])
	}
	return said
}

// nextEpoch is the epoch above last.
func nextEpoch(last uint16) (uint16, error) {
	if last >= cdc.MaxEpoch {
		return 0, stopf("a new prefix and empty sinks (an epoch is used up by every switch of the server and by every 4 TB of log, and a version has room for no more)",
			"all %d epochs of this pipeline are used up", cdc.MaxEpoch)
	}
	return last + 1, nil
}

// anew puts the position at the end of the server's log, under a new epoch, and
// has every table copied; what a copy has not written again is swept out of the
// sinks. Nothing of the old log counts any more.
func (s *Source) anew(ctx context.Context, now *server, tables []cdc.TableName, reason string) error {
	if err := s.Out.Flush(ctx); err != nil {
		return err
	}
	if err := s.stillOurs(ctx); err != nil {
		return err
	}
	epoch, err := s.FirstEpoch(ctx) // above those of records whose position was never saved
	if err != nil {
		return err
	}
	next, err := nextEpoch(max(s.pos.Epoch, epoch-1))
	if err != nil {
		return err
	}
	epoch = next
	sweep, err := cdc.NewVersion(epoch-1, cdc.MaxSeq)
	if err != nil {
		return err
	}
	old := s.pos
	s.published = nil // the position is behind it
	s.pos = cdc.Position{Format: cdc.PositionFormat, Run: old.Run, Term: old.Term, Flavor: flavorName(now.flavor), ServerUUID: now.id, Epoch: epoch,
		Copied: []string{}}
	s.gtids = now.executed.clone()
	for _, t := range tables {
		if _, found := slices.BinarySearch(old.Copied, t.String()); !found {
			continue // a first copy, like any other
		}
		s.schedule(cdc.Snapshot{ID: fmt.Sprintf(anewPrefix+"%d-%s", epoch, t), Table: t.String(), Reason: reason, Sweep: sweep})
	}
	for _, name := range old.Copied { // dropped meanwhile: its rows are gone as a whole
		t := tableNamed(name)
		if slices.Contains(tables, t) || !s.Match(t) {
			continue
		}
		if err := s.sweep(ctx, cdc.Snapshot{Table: name, Sweep: sweep}); err != nil {
			return err
		}
	}
	if err := s.saveNow(ctx); err != nil {
		return err
	}
	s.Log.Warn("every table is copied again under a new epoch", "reason", reason, "epoch", epoch, "gtid_set", s.pos.GTIDSet, "server", now.id)
	return nil
}

// stillOurs refuses to begin an epoch when another capture has gone on meanwhile: two
// would count it on their own.
func (s *Source) stillOurs(ctx context.Context) error {
	if s.Saved == nil {
		return nil
	}
	saved, found, err := s.Saved(ctx)
	if err != nil || !found || saved.Term <= s.pos.Term && saved.Epoch <= s.pos.Epoch {
		return err
	}
	return lost(fmt.Errorf("another capture has gone on from here (term %d, epoch %d); this one waits until it notices", saved.Term, saved.Epoch))
}

// saveNow saves the position before anything is read behind it.
func (s *Source) saveNow(ctx context.Context) error {
	if err := s.checkpoint(ctx); err != nil {
		return err
	}
	return s.Out.Flush(ctx)
}

// switchTo goes on with a log that is not the one the clock was counted on: of
// another server, or of one that has lost its end. Ghosts are transactions that
// were read and that it does not have.
//
// Changes behind the position may be in Kafka already, under the old epoch. Those
// the new log has as well are left out when they are read again, so that no reader
// of a sink sees a row step back; those it does not have are ghosts like the rest.
func (s *Source) switchTo(ctx context.Context, now *server, tables []cdc.TableName, ghosts gtidSet) error {
	if err := s.Out.Flush(ctx); err != nil { // what is scanned below must be there
		return err
	}
	if err := s.stillOurs(ctx); err != nil {
		return err
	}
	at, err := s.pos.Version()
	if err != nil {
		return err
	}
	if s.pos.Replaced != 0 { // switched again before the tail of the last time was read
		at = s.pos.Replaced
	}
	tail, err := s.scanTail(ctx, now, at)
	if err != nil {
		return err
	}
	if now.applying && !tail.ghosts.empty() { // the position is in it, but not what is in Kafka behind
		return s.behind(tail.ghosts)
	}
	ghosts = ghosts.union(tail.ghosts)
	epoch, err := nextEpoch(max(s.pos.Epoch, tail.epoch))
	if err != nil {
		return err
	}
	if !ghosts.empty() {
		repaired, err := s.repair(ctx, now, ghosts, epoch)
		if err != nil {
			return err
		}
		if !repaired {
			return s.overGap(ctx, now, tables, fmt.Sprintf("the server at %s has lost transactions that were read (%s), and Kafka does not hold all of their changes any more, so nobody can tell which rows they changed", s.Config.Addr, ghosts))
		}
	}
	old := s.pos
	if s.gtids, err = parseGTIDs(now.flavor, s.gtids.minus(ghosts).String()); err != nil {
		return err
	}
	s.pos.ServerUUID, s.pos.Epoch, s.pos.Seq = now.id, epoch, 0
	s.pos.File, s.pos.Pos, s.pos.LastGTID, s.pos.Replaced = "", 0, "", 0
	if s.published = tail.published; len(tail.published) > 0 {
		s.pos.Replaced = at
	}
	if err := s.saveNow(ctx); err != nil {
		return err
	}
	s.Log.Warn("the log goes on with another server, or without its end; a new epoch begins", "old_server", old.ServerUUID, "new_server", now.id,
		"epoch", epoch, "gtid_set", s.gtids, "already_in_kafka", len(tail.published))
	return nil
}

// rowOf names a row of any table.
type rowOf struct {
	table cdc.TableName
	key   string
}

// replay is what Kafka has already of a transaction that is read again under a new
// epoch.
type replay struct {
	rows     map[rowOf]int // how many distinct changes of each
	barriers map[cdc.TableName]cdc.Version
}

// tail is what is in Kafka behind the position.
type tail struct {
	epoch     uint16 // the highest
	ghosts    gtidSet
	published map[string]*replay // by GTID
}

// maxTail bounds what is remembered of the tail; maxGhostKeys what is repaired.
const (
	maxTail      = 1 << 20
	maxGhostKeys = 1 << 20
)

// tailMargin is how much older than the commit of the position's last transaction the
// time of a record behind it can be. A record's time is when Kafka took it, or, where
// the topic says so, when its transaction was first committed; it was taken after
// that. Transactions stand in a log in about the order of their commits, and those
// behind the position were read after it: only clocks that differ and replicas that
// were merged put them out of it, by seconds or minutes.
const tailMargin = time.Hour

// scanTail finds the changes in Kafka with a version above at whose transactions
// are not in the position.
func (s *Source) scanTail(ctx context.Context, now *server, at cdc.Version) (tail, error) {
	none, err := parseGTIDs(now.flavor, "")
	if err != nil {
		return tail{}, err
	}
	found := tail{ghosts: none, published: map[string]*replay{}}
	if s.Published == nil {
		return found, nil
	}
	var since time.Time // of a first position nothing is known, and little is behind it
	if s.pos.CommitMicros > 0 {
		since = time.UnixMicro(s.pos.CommitMicros).Add(-tailMargin)
	}
	seen := map[string][]cdc.Version{} // by GTID, table and key
	full := false
	err = s.Published(ctx, since, func(c *cdc.Change, partition int, _ bool) error {
		found.epoch = max(found.epoch, c.Version.Epoch())
		if c.GTID == "" || c.Version <= at {
			return nil
		}
		g, ours, err := gtidOf(now.flavor, c.GTID)
		if err != nil || !ours {
			return err
		}
		if s.gtids.has(g) { // an epoch has ended by itself in between
			return nil
		}
		if !now.executed.has(g) {
			found.ghosts.add(g)
			return nil
		}
		if c.Op == cdc.OpBarrier && partition != 0 {
			return nil // it counts in the partition that gets it last: all before it is in Kafka, and nothing behind it else
		}
		change := c.GTID + "\x00" + c.Table.String() + "\x00" + string(c.Key)
		if slices.Contains(seen[change], c.Version) {
			return nil // published twice
		}
		if len(seen) >= maxTail {
			full = true
			return nil
		}
		seen[change] = append(seen[change], c.Version)
		again := found.published[c.GTID]
		if again == nil {
			again = &replay{map[rowOf]int{}, map[cdc.TableName]cdc.Version{}}
			found.published[c.GTID] = again
		}
		if c.Op == cdc.OpBarrier {
			again.barriers[c.Table] = c.Version
		} else {
			again.rows[rowOf{c.Table, string(c.Key)}]++
		}
		return nil
	})
	if err != nil {
		return found, fmt.Errorf("look for changes in Kafka behind the saved position: %w", err)
	}
	// Of MariaDB's numbers only those behind what the server has are missing.
	found.ghosts = found.ghosts.minus(now.executed)
	if full {
		s.Log.Warn("there is more in Kafka behind the saved position than can be remembered; some rows are published again and may step back for a moment", "remembered", maxTail)
	}
	return found, nil
}

// wasPublished reports whether a change that is read again is in Kafka already,
// under the epoch before.
func (s *Source) wasPublished(c *cdc.Change) bool {
	again := s.published[c.GTID]
	if again == nil {
		return false
	}
	row := rowOf{c.Table, string(c.Key)}
	if again.rows[row] == 0 {
		return false
	}
	again.rows[row]--
	return true
}

// gtidOf reads the GTID of a record. It is not ours when another kind of server, from
// before a new copy of everything, gave it.
func gtidOf(flavor, s string) (g gtid, ours bool, err error) {
	if g, err = parseGTID(flavor, s); err == nil {
		return g, true, nil
	}
	other := flavorMariaDB
	if flavor == flavorMariaDB {
		other = flavorMySQL
	}
	if _, no := parseGTID(other, s); no == nil {
		return gtid{}, false, nil
	}
	return gtid{}, false, err
}

// errNotWhole ends the search for lost changes of which not all can be found.
var errNotWhole = errors.New("not all of them can be found")

// repair has the rows read again that transactions have changed which are lost.
// It reports false when Kafka does not hold all of their changes any more.
func (s *Source) repair(ctx context.Context, now *server, ghosts gtidSet, epoch uint16) (bool, error) {
	if s.Published == nil || s.Repair == nil {
		return false, nil
	}
	began := time.Now()
	transactions := map[string]bool{}
	keys := map[cdc.TableName]map[string]bool{}
	emptied := map[cdc.TableName]bool{}
	count := 0
	err := s.Published(ctx, time.Time{}, func(c *cdc.Change, _ int, cut bool) error {
		if c.GTID == "" {
			return nil
		}
		g, ours, err := gtidOf(now.flavor, c.GTID)
		if err != nil || !ours || !ghosts.has(g) {
			return err
		}
		if cut || count == maxGhostKeys { // the oldest that is left is one of them, so others may be gone; or they are too many
			return errNotWhole
		}
		transactions[c.GTID] = true
		if keys[c.Table] == nil {
			keys[c.Table] = map[string]bool{}
		}
		if c.Op == cdc.OpBarrier { // it took away rows that were never named
			emptied[c.Table] = true
			return nil
		}
		if !keys[c.Table][string(c.Key)] {
			keys[c.Table][string(c.Key)] = true
			count++
		}
		return nil
	})
	if errors.Is(err, errNotWhole) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the changes of lost transactions in Kafka: %w", err)
	}
	// A lost statement had its table copied anew, and swept of rows that are back now.
	for _, sn := range s.pos.Snapshots {
		if g, ours, err := gtidOf(now.flavor, sn.GTID); sn.GTID != "" && err == nil && ours && ghosts.has(g) {
			t := tableNamed(sn.Table)
			transactions[sn.GTID], emptied[t] = true, true
			if keys[t] == nil {
				keys[t] = map[string]bool{}
			}
			s.endSnapshot(sn.ID, cdc.SnapshotCancelled, "the source has lost "+sn.GTID)
		}
	}
	reason := "transactions lost by the source: " + truncate(ghosts.String(), 300)
	var requests []cdc.SnapshotRequest
	var first []string
	for _, t := range slices.SortedFunc(maps.Keys(keys), func(a, b cdc.TableName) int { return cmp.Compare(a.String(), b.String()) }) {
		if emptied[t] {
			requests = append(requests, wholeRequest(t, epoch, reason))
		}
		sorted := slices.Sorted(maps.Keys(keys[t]))
		for _, k := range sorted[:min(len(sorted), 5)] {
			first = append(first, t.String()+k)
		}
		requests = append(requests, keyRequests(t, sorted, epoch, reason)...)
	}
	if len(requests) > 0 {
		if err := s.Repair(ctx, requests); err != nil {
			return false, fmt.Errorf("ask for the rows of lost transactions to be read again: %w", err)
		}
	}
	s.Metrics.ghostTransactions.Add(float64(len(transactions)))
	s.Metrics.ghostKeys.Add(float64(count))
	s.Log.Warn("transactions that were read are lost; the rows they changed are read again", "gtids", ghosts.String(), "in_kafka", len(transactions),
		"keys", count, "tables", len(keys), "first_keys", strings.Join(first[:min(len(first), 10)], " "), "seconds", time.Since(began).Round(time.Millisecond).Seconds())
	return true, nil
}

// keyRequests asks for the rows of keys, which are sorted. Asked again after a crash,
// the requests have the same IDs.
func keyRequests(t cdc.TableName, keys []string, epoch uint16, reason string) (requests []cdc.SnapshotRequest) {
	for len(keys) > 0 {
		n, size := 0, 0
		hash := sha256.New()
		for n < len(keys) && n < cdc.MaxRequestKeys && (n == 0 || size+len(keys[n]) < cdc.MaxRequestBytes) {
			size += len(keys[n]) + 1
			hash.Write([]byte(keys[n] + "\n"))
			n++
		}
		r := cdc.SnapshotRequest{Format: cdc.SnapshotRequestFormat, ID: fmt.Sprintf(repairPrefix+"%d-%s-%s", epoch, t, hex.EncodeToString(hash.Sum(nil)[:6])),
			Table: t.String(), Reason: reason, Want: cdc.SnapshotRunning, AtMicros: time.Now().UnixMicro()}
		for _, k := range keys[:n] {
			r.Keys = append(r.Keys, json.RawMessage(k))
		}
		requests = append(requests, r)
		keys = keys[n:]
	}
	return requests
}

// wholeRequest asks for every row of a table.
func wholeRequest(t cdc.TableName, epoch uint16, reason string) cdc.SnapshotRequest {
	return cdc.SnapshotRequest{Format: cdc.SnapshotRequestFormat, ID: fmt.Sprintf(repairPrefix+"%d-%s", epoch, t), Table: t.String(), Reason: reason,
		Want: cdc.SnapshotRunning, AtMicros: time.Now().UnixMicro()}
}

// flavorName is how a Position names a kind of server.
func flavorName(flavor string) string {
	if flavor == flavorMySQL {
		return ""
	}
	return flavor
}

// reused reports that a server which was read before has other transactions now
// under numbers that were read, and says how it shows; what was read under them and
// what is there now cannot be told apart by number. Every number it gives anew is of
// a commit behind the last one that was read.
func (s *Source) reused(ctx context.Context, now *server, found verdict) (string, error) {
	if now.flavor == flavorMariaDB { // its log has no commit times to tell by
		if n, was := fileNumber(now.file), fileNumber(s.pos.File); n < was && !now.executed.empty() {
			return fmt.Sprintf("its log is at file %s, after %s had been read", now.file, s.pos.File), nil
		}
		return "", nil
	}
	if s.pos.LastGTID == "" || s.pos.CommitMicros == 0 {
		return "", nil
	}
	last, err := parseGTID(now.flavor, s.pos.LastGTID)
	if err != nil {
		return "", err
	}
	before := s.gtids.clone()
	if found == tailLost { // the newest of its own that it shares with what was read
		shared := now.executed.minus(now.executed.minus(s.gtids)).(mysqlGTIDs)
		own := shared[mysqlStream{last.source, last.tag}]
		if len(own) == 0 {
			return "", nil
		}
		last.number = own[len(own)-1].last
		before = now.executed.clone()
	}
	if now.purged.has(last) {
		return "", nil
	}
	before = before.minus(mysqlGTIDs{{last.source, last.tag}: {{last.number, last.number}}})
	first, commit, err := s.firstBehind(ctx, before)
	if err != nil {
		return "", err
	}
	switch {
	case first != last:
		return fmt.Sprintf("the transaction behind %s is number %d and not %d", before, first.number, last.number), nil
	case commit > s.pos.CommitMicros, found == goesOn && commit != s.pos.CommitMicros:
		return fmt.Sprintf("number %d of %s was committed at %s, and what was read last at %s", last.number, last.source,
			time.UnixMicro(commit).UTC().Format(stampFormat), time.UnixMicro(s.pos.CommitMicros).UTC().Format(stampFormat)), nil
	}
	return "", nil
}

const stampFormat = "2006-01-02T15:04:05.000000Z"

// fileNumber is the number at the end of the name of a log file.
func fileNumber(file string) int {
	n, _ := strconv.Atoi(file[strings.LastIndexByte(file, '.')+1:])
	return n
}

// firstBehind looks up the first transaction in the log that is not in the set, and
// when it was first committed. There must be one, or it waits for it; heartbeats
// come also while the server skips what is in the set.
func (s *Source) firstBehind(ctx context.Context, set gtidSet) (first gtid, commit int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	conn, err := connect(ctx, s.Config)
	if err != nil {
		return first, 0, err
	}
	defer until(ctx, conn)()
	conn.ReadTimeout = s.Config.ReadTimeout
	if err := sameServer(conn, s.pos.ServerUUID); err != nil { // another one's log says nothing
		return first, 0, err
	}
	checksums, err := s.askForLog(conn, set)
	if err != nil {
		return first, 0, err
	}
	log := newEventLog(conn, s.Config.ReadTimeout, checksums)
	for {
		var ev event
		if err := log.next(&ev); err != nil {
			return first, 0, fmt.Errorf("look up the transaction behind %s in the log: %w", set, err)
		}
		var g replication.GTIDEvent
		switch ev.EventType {
		case replication.GTID_EVENT:
			err = decode(&g, &ev)
		case replication.GTID_TAGGED_LOG_EVENT:
			var tagged replication.GtidTaggedLogEvent
			err = decode(&tagged, &ev)
			g = tagged.GTIDEvent
		default:
			continue
		}
		return gtid{source: uuid.UUID(g.SID), tag: g.Tag.String(), number: uint64(g.GNO)}, int64(g.OriginalCommitTimestamp), err
	}
}

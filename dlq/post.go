package dlq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

const (
	// remembered bounds the rows that a post remembers of what the stream settles before
	// it knows its letters.
	remembered = 1 << 16
	// recalled bounds the rows whose letters were closed last that a post remembers.
	recalled = 1 << 12
	// roundLetters is how many letters are closed, or tried again, at once.
	roundLetters = 500
	// loadBytes is how much a post reads at once while it does not know its letters.
	loadBytes = 1 << 20
	// soon is the wait for what should be there in a moment.
	soon = 50 * time.Millisecond
)

// errLoading is what a commit gets whose partition is taken away while the post does not
// know its letters: what it covers is read again.
var errLoading = errors.New("the letters of the partition are not all known yet")

// post looks after the letters of one partition.
type post struct {
	*Posts
	id    int
	users int // guarded by Posts.mu

	over context.Context // ends with the post; its cause is what the post failed with
	end  context.CancelCauseFunc
	done chan struct{}

	mu      sync.Mutex
	bell    chan struct{} // closed when something below has changed
	owned   map[string]int
	runs    map[string]context.Context // of the partitions that it owns, by topic
	index   *index
	whole   bool                  // the index has every letter, as far as asked for
	first   bool                  // it has what was there when the post began
	next    int64                 // offset behind what the index has
	until   int64                 // what it must have at least, besides
	asked   int                   // times that the post was to look how much there is
	looked  int                   // of them, those that are answered
	met     map[identity]news     // until then: what the stream has settled
	barrier map[string]news       // by table
	grown   map[string]int        // how many partitions the topics of tables have, as far as this partition is
	astray  []identity            // letters whose rows change in another partition now, to be moved there
	moving  bool                  // some are under way
	onward  []kafka.Record        // ends that operators have written here, for where the letters are now
	busy    map[identity]*writing // letters of which a record is being written
	closing map[identity]news     // letters to be closed in the next round
	ending  map[identity]news     // those of the round that is under way
	mended  map[identity]bool     // letters that were overwritten by an older writer, to be written again
	rounds  int                   // that are over
	closer  bool                  // a round is under way
	recent  map[identity]news     // what was closed last
	due     attempts
}

// news is what makes a letter void that is not newer than version.
type news struct {
	version cdc.Version
	why     why
}

type why uint8

const (
	applied why = iota // the store has the change of that version
	stale              // the store has a newer one
	swept              // the row was taken away with its table
)

// writing is a record of a letter on its way into the index: it is there when the post
// has read it.
type writing struct {
	state   State
	version cdc.Version
	retries int
}

func newPost(p *Posts, id int) *post {
	at := &post{
		Posts: p, id: id, done: make(chan struct{}), bell: make(chan struct{}),
		grown: make(map[string]int), owned: make(map[string]int), runs: make(map[string]context.Context), index: newIndex(), met: make(map[identity]news), barrier: make(map[string]news),
		busy: make(map[identity]*writing), closing: make(map[identity]news), mended: make(map[identity]bool), recent: make(map[identity]news),
	}
	at.over, at.end = context.WithCancelCause(context.Background())
	return at
}

// start begins to read the letters and to look after them.
func (p *post) start(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(p.over, cancel)
	go func() {
		defer close(p.done)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return p.follow(ctx) })
		g.Go(func() error { return p.look(ctx) })
		g.Go(func() error { return p.close(ctx) })
		g.Go(func() error { return p.retry(ctx) })
		if err := g.Wait(); err != nil && p.over.Err() == nil {
			p.end(err)
		}
	}()
}

func (p *post) stop() {
	p.end(nil)
	<-p.done
}

// ring tells everybody who waits that something has changed. The caller holds mu.
func (p *post) ring() {
	close(p.bell)
	p.bell = make(chan struct{})
}

// await returns when ok does, which is asked with mu held; the caller holds mu before and
// afterwards. It fails when ctx or the post ends.
func (p *post) await(ctx context.Context, ok func() bool) error {
	for !ok() {
		bell := p.bell
		p.mu.Unlock()
		select {
		case <-bell:
		case <-ctx.Done():
			p.mu.Lock()
			return ctx.Err()
		case <-p.over.Done():
			p.mu.Lock()
			return cmp.Or(context.Cause(p.over), context.Canceled)
		}
		p.mu.Lock()
	}
	return nil
}

// own notes that a partition of a topic came, or that one left. What was closed for
// records that it may now read again, because the store has lost them, counts no more.
func (p *post) own(topic string, n int, running context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.owned[topic] += n
	p.runs[topic] = running
	clear(p.recent)
	p.ring()
}

func (p *post) count(s State) (n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, letters := range p.index.counts {
		if States[c.state] == s {
			n += int64(letters)
		}
	}
	return n
}

// addOpen adds the open letters to those of a table, and reports whether it knows them all.
func (p *post) addOpen(byTable map[string]Open) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, x := range p.index.ages() {
		table := p.index.topics[i].label()
		o, known := byTable[table]
		if x.letters == 0 && known {
			continue
		}
		o.Letters += x.letters
		o.Blind += x.blind
		if at := time.Unix(int64(x.failed), 0).UTC(); x.letters > 0 && (o.Failed.IsZero() || at.Before(o.Failed)) {
			o.Failed = at
		}
		if at := time.Unix(int64(x.undelivered), 0).UTC(); x.letters > x.blind && (o.Committed.IsZero() || at.Before(o.Committed)) {
			o.Committed = at
		}
		byTable[table] = o
	}
	return p.whole
}

// openIn counts the open letters of a topic that nothing has made void; -1 while they are not
// all known.
func (p *post) openIn(topic string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.whole || p.moving || len(p.astray) > 0 {
		return -1
	}
	for i, x := range p.index.extents {
		if p.index.topics[i].topic == topic {
			n += x.letters
		}
	}
	if n == 0 {
		return 0
	}
	void := map[identity]bool{}
	for _, closing := range []map[identity]news{p.closing, p.ending} {
		for id, by := range closing {
			if e, open := p.index.letters[id]; open && !void[id] && e.version <= by.version && p.index.topics[e.origin].topic == topic {
				void[id] = true
				n--
			}
		}
	}
	return n
}

// follow keeps the index as the topic is.
func (p *post) follow(ctx context.Context) error {
	select {
	case p.Loading <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	release := sync.OnceFunc(func() { <-p.Loading })
	defer release()
	return p.Log.Follow(ctx, p.Topic, p.id, loadBytes, func(records []kafka.Record, whole bool) error {
		letters := make([]Letter, len(records))
		for i, r := range records {
			var err error
			if letters[i], err = p.read(r); err != nil {
				return err
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for i := range letters {
			p.fold(&letters[i])
			p.next = letters[i].place.Offset + 1
		}
		if whole {
			release()
			p.first = true
		}
		p.complete()
		if len(letters) > 0 {
			p.ring()
		}
		return nil
	})
}

// look finds out how much there is to be read, when the post was told to.
func (p *post) look(ctx context.Context) error {
	for {
		p.mu.Lock()
		err := p.await(ctx, func() bool { return p.looked < p.asked })
		asked := p.asked
		p.mu.Unlock()
		if err != nil {
			return ended(ctx, err)
		}
		ends, err := p.Log.EndOffsets(ctx, p.Topic)
		if err != nil {
			return ended(ctx, err)
		}
		p.mu.Lock()
		p.looked, p.until = asked, ends[p.id]
		p.complete()
		p.mu.Unlock()
	}
}

// complete takes note that every letter is known, if that is so, and does what was put off
// until then.
func (p *post) complete() {
	if p.whole || !p.first || p.looked < p.asked || p.next < p.until {
		return
	}
	p.whole = true
	for id, n := range p.met {
		p.void(id, n)
	}
	p.met = nil
	for table, n := range p.barrier {
		p.voidTable(table, n)
	}
	for table := range p.grown {
		p.resettle(table)
	}
	p.ring()
}

// fold takes the next record of the topic into the index.
func (p *post) fold(l *Letter) {
	id := l.identity()
	e, known := p.index.letters[id]
	switch {
	case known && e.version > l.Version:
		p.mended[id] = true
	case !l.State.Open():
		if l.State == Moved { // whoever comes later knows it from here
			p.grown[l.Table] = max(p.grown[l.Table], l.among)
		}
		p.index.remove(id)
		delete(p.mended, id)
		w := p.busy[id]
		byOther := l.State != Moved && (w == nil || w.state == Moved)
		if n := p.grown[l.Table]; n > 0 && p.whole && byOther {
			if home := kafka.HashKey(l.recordKey).Partition(n); home != p.id {
				p.onward = append(p.onward, p.Letters.endIn(home, *l, l.State, l.Closed))
			}
		}
	default:
		p.index.put(id, l)
		delete(p.mended, id)
		if l.State == Retrying {
			p.due.add(attempt{p.dueAt(l), id, l.place.Offset})
		}
		if n, ok := p.recent[id]; ok && p.whole {
			p.void(id, n) // whoever wrote it did not know that
		}
		if n, ok := p.barrier[l.Table]; ok && p.whole {
			p.void(id, n)
		}
		if p.whole && p.homeOf(id) != p.id {
			p.astray = append(p.astray, id)
		}
	}
	if w := p.busy[id]; w != nil && w.state == l.State && w.version == l.Version && w.retries == l.Retries {
		delete(p.busy, id)
	}
}

// dueAt is when a letter is tried again: that is not later than in one wait from now,
// whatever the clock of its writer says.
func (p *post) dueAt(l *Letter) time.Time {
	if l.Retries >= len(p.Retries) {
		return l.LastFailed
	}
	wait := p.Retries[l.Retries]
	wait += time.Duration((rand.Float64() - 0.5) / 2 * float64(wait))
	at, latest := l.LastFailed.Add(wait), time.Now().Add(wait)
	if at.After(latest) {
		return latest
	}
	return at
}

// void has a letter closed, if there is one and news are not older. The caller holds mu.
func (p *post) void(id identity, n news) {
	if e, known := p.index.letters[id]; !known || e.version > n.version {
		return
	}
	if before, ok := p.closing[id]; !ok || before.version < n.version {
		p.closing[id] = n
		p.ring()
	}
}

// voidTable does so for every letter of a table.
func (p *post) voidTable(table string, n news) {
	for id, e := range p.index.letters {
		if p.index.topics[e.origin].table == table && e.version <= n.version {
			p.void(id, n)
		}
	}
}

// homeOf is the partition where a letter belongs: where the changes of its row come. What
// nobody can read stays where it is. The caller holds mu.
func (p *post) homeOf(id identity) int {
	e := p.index.letters[id]
	if n := p.grown[p.index.topics[e.origin].table]; n > 0 && e.version > 0 {
		return e.key.Partition(n)
	}
	return p.id
}

// resettle has every letter of a table moved that belongs elsewhere, those first that stand
// first: so they are read together.
func (p *post) resettle(table string) {
	type standing struct {
		id     identity
		offset int64
	}
	var astray []standing
	for id, e := range p.index.letters {
		if p.index.topics[e.origin].table == table && p.homeOf(id) != p.id {
			astray = append(astray, standing{id, e.offset})
		}
	}
	slices.SortFunc(astray, func(a, b standing) int { return cmp.Compare(a.offset, b.offset) })
	for _, s := range astray {
		p.astray = append(p.astray, s.id)
	}
	p.ring()
}

func (p *post) settled(c *cdc.Change, v sinks.Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.Op == cdc.OpGrowth {
		table := c.Table.String()
		p.grown[table] = max(p.grown[table], c.Growth.Partitions)
		// Letters may have come from other partitions that the index does not have yet.
		if p.whole {
			p.whole, p.met = false, make(map[identity]news)
		}
		p.asked++
		p.ring()
		return
	}
	if c.Op == cdc.OpBarrier {
		table, n := c.Table.String(), news{c.Version, swept}
		if p.barrier[table].version < n.version {
			p.barrier[table] = n
		}
		if p.whole {
			p.voidTable(table, n)
		}
		return
	}
	if p.whole && len(p.index.letters) == 0 {
		return
	}
	id, n := identify(rowKey(c.Table, c.Key)), news{c.Version, applied}
	if v == sinks.Stale {
		n.why = stale
	}
	switch {
	case p.whole:
		p.void(id, n)
	case p.met[id].version <= n.version:
		p.met[id] = n
	}
}

// room waits until there is room to remember what is settled.
func (p *post) room(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.await(ctx, func() bool { return p.whole || len(p.met) < remembered })
}

// flush returns nil when every letter is closed that was to be closed before, and every one
// moved that belongs elsewhere. When running ends it does not wait for letters to be known.
func (p *post) flush(ctx, running context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.loaded(ctx, running); err != nil {
		return err
	}
	round := p.rounds
	if p.closer {
		round++
	}
	if len(p.closing) > 0 {
		round++
	}
	return p.await(ctx, func() bool { return p.rounds >= round && len(p.astray) == 0 && !p.moving })
}

// loaded returns when all letters are known. It waits only while running lasts. The caller
// holds mu before and afterwards.
func (p *post) loaded(ctx, running context.Context) error {
	known, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(running, stop)()
	err := p.await(known, func() bool { return p.whole })
	if err != nil && ctx.Err() == nil && running.Err() != nil {
		return errLoading
	}
	return err
}

// bury writes the letter of a refusal, unless one of its row is open that is not older. Of
// one that is, it inherits since when the store lacks the row, unless the store has had it since.
func (p *post) bury(ctx context.Context, r sinks.Refusal) error {
	letter := p.refused(r)
	switch {
	case r.Transient && len(p.Retries) > 0:
		letter.State = Retrying
	case r.Transient:
		letter.State = Exhausted
	}
	id := letter.identity()
	p.mu.Lock()
	err := p.loaded(ctx, cmp.Or(p.runs[r.Record.Topic], ctx))
	if err == nil {
		err = p.await(ctx, func() bool { return p.busy[id] == nil })
	}
	e, known := p.index.letters[id]
	if err != nil || known && e.version >= letter.Version {
		p.mu.Unlock()
		return err
	}
	if known && max(p.closing[id].version, p.ending[id].version) < e.version {
		letter.inherit(e)
	}
	w := p.write(id, letter)
	p.mu.Unlock()
	if err := p.put(ctx, []job{{id: id, writing: w, record: p.open(r.Record, letter)}}); err != nil {
		return fmt.Errorf("bury %s: %w", letter.Source, err)
	}
	return nil
}

// write notes that a letter is being written. The caller holds mu.
func (p *post) write(id identity, l Letter) *writing {
	w := &writing{state: l.State, version: l.Version, retries: l.Retries}
	p.busy[id] = w
	return w
}

// job is a letter that is being dealt with, and the record that comes of it.
type job struct {
	id      identity
	offset  int64
	news    news
	mend    bool // write it again, for it was overwritten
	move    bool // write it to where it belongs, and end it here
	copy    kafka.Record
	writing *writing
	letter  Letter
	held    kafka.Record
	change  cdc.Change
	broken  error        // the letter holds no change, whatever it says
	record  kafka.Record // nothing is to be written when it has no topic
}

// put writes the records of jobs and returns when the index has them.
func (p *post) put(ctx context.Context, jobs []job) error {
	records := make([]kafka.Record, 0, len(jobs))
	for _, j := range jobs {
		if j.record.Topic != "" {
			records = append(records, j.record)
		}
	}
	var err error
	if len(records) > 0 {
		err = p.Log.ProduceAll(ctx, records...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		err = p.await(ctx, func() bool {
			return !slices.ContainsFunc(jobs, func(j job) bool { return j.record.Topic != "" && p.busy[j.id] == j.writing })
		})
	}
	for _, j := range jobs {
		if p.busy[j.id] == j.writing {
			delete(p.busy, j.id)
		}
	}
	p.ring()
	return err
}

// load reads the letters of jobs, which are busy, back from Kafka. It returns those that
// it found; the others are not busy any more.
func (p *post) load(ctx context.Context, jobs []job) ([]job, error) {
	slices.SortFunc(jobs, func(a, b job) int { return cmp.Compare(a.offset, b.offset) })
	offsets := make([]int64, len(jobs))
	for i := range jobs {
		offsets[i] = jobs[i].offset
	}
	i := 0
	found := make([]job, 0, len(jobs))
	err := p.Log.ReadAt(ctx, p.Topic, p.id, offsets, func(r kafka.Record) error {
		for jobs[i].offset < r.Offset {
			i++
		}
		letter, err := p.read(r)
		if err != nil {
			return err
		}
		j := jobs[i]
		j.letter, j.held = letter, original(letter, r)
		if letter.Replayable() {
			j.change, j.broken = cdc.Decode(j.held.Key, j.held.Value, j.held.Headers)
		}
		found = append(found, j)
		return nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, j := range jobs {
		if err != nil || !slices.ContainsFunc(found, func(f job) bool { return f.id == j.id }) {
			delete(p.busy, j.id)
		}
	}
	p.ring()
	return found, err
}

// close closes letters that are void, in rounds, writes those again that were overwritten,
// and moves those that belong elsewhere.
func (p *post) close(ctx context.Context) error {
	for {
		p.mu.Lock()
		if err := p.await(ctx, func() bool { return p.whole && len(p.closing)+len(p.mended)+len(p.astray)+len(p.onward) > 0 }); err != nil {
			p.mu.Unlock()
			return ended(ctx, err)
		}
		closing, mended := p.closing, p.mended
		onward := p.onward
		p.onward = nil
		p.closing, p.ending, p.mended, p.closer = make(map[identity]news), closing, make(map[identity]bool), true
		n := min(len(p.astray), roundLetters)
		astray := p.astray[:n]
		p.astray = p.astray[n:]
		p.moving = len(astray) > 0
		p.mu.Unlock()
		err := p.round(ctx, closing, mended, astray)
		if err == nil && len(onward) > 0 {
			err = p.Log.ProduceAll(ctx, onward...)
		}
		if err != nil { // the round is never over: nobody may commit behind it
			return ended(ctx, err)
		}
		p.mu.Lock()
		p.ending, p.closer, p.moving = nil, false, false
		p.rounds++
		p.ring()
		p.mu.Unlock()
	}
}

// ended is nil when an error is only that of the end of ctx.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (p *post) round(ctx context.Context, closing map[identity]news, mended map[identity]bool, astray []identity) error {
	jobs, err := p.claim(ctx, closing, mended, astray)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(jobs, roundLetters) {
		found, err := p.load(ctx, some)
		if err != nil {
			return err
		}
		for i := range found {
			p.conclude(&found[i])
		}
		if err := p.copyHome(ctx, found); err != nil {
			return err
		}
		if err := p.put(ctx, found); err != nil {
			return err
		}
		p.mu.Lock()
		for _, j := range found {
			if !j.mend && !j.move {
				if len(p.recent) >= recalled {
					clear(p.recent)
				}
				p.recent[j.id] = j.news
			}
		}
		p.mu.Unlock()
		if len(found) < len(some) {
			if err := p.missing(ctx, some, found); err != nil {
				return err
			}
		}
	}
	return nil
}

// claim makes the letters of a round busy, waiting for those that are.
func (p *post) claim(ctx context.Context, closing map[identity]news, mended map[identity]bool, astray []identity) ([]job, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var jobs []job
	taken := make(map[identity]bool)
	take := func(j job) error {
		if taken[j.id] {
			return nil
		}
		if err := p.await(ctx, func() bool { return p.busy[j.id] == nil }); err != nil {
			return err
		}
		e, known := p.index.letters[j.id]
		if !known || !j.mend && !j.move && e.version > j.news.version {
			return nil
		}
		taken[j.id] = true
		j.offset, j.writing = e.offset, p.write(j.id, Letter{Version: e.version})
		jobs = append(jobs, j)
		return nil
	}
	for id, n := range closing {
		if err := take(job{id: id, news: n}); err != nil {
			return nil, err
		}
	}
	for id := range mended {
		if err := take(job{id: id, mend: true}); err != nil {
			return nil, err
		}
	}
	for _, id := range astray {
		if err := take(job{id: id, move: true}); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(jobs, func(a, b job) int { return cmp.Compare(a.offset, b.offset) }) // those that stand together are read together
	return jobs, nil
}

// conclude makes the record that a job of a round comes to.
func (p *post) conclude(j *job) {
	switch {
	case j.move:
		p.leave(j)
		return
	case j.mend:
		j.record = p.anew(j, j.letter)
		return
	}
	state, reason := Superseded, "the store has a newer change of the row"
	switch {
	case j.news.why == swept:
		reason = "the table was emptied, dropped or copied anew"
	case j.news.version > j.letter.Version:
		reason = fmt.Sprintf("the store has version %s of the row", j.news.version)
	case j.news.why == applied:
		state, reason = Resolved, "the store has the change"
	}
	j.record = p.finished(j, state, reason)
}

// leave makes the two records of a letter that belongs elsewhere: itself there, as it is,
// and its end here. First the one and then the other is written: wherever this process
// dies, the letter is open in at least one partition.
func (p *post) leave(j *job) {
	p.mu.Lock()
	home, among := p.homeOf(j.id), p.grown[j.letter.Table]
	p.mu.Unlock()
	if home == p.id {
		return
	}
	end := j.letter
	end.State, end.among = Moved, among
	p.expect(j, end)
	j.move = true
	j.copy = p.open(j.held, j.letter)
	j.copy.Partition = home
	j.record = p.Letters.end(end, Moved, fmt.Sprintf("it stands in partition %d, where the changes of its row come now", home))
}

// copyHome writes the letters that are moved to where they belong.
func (p *post) copyHome(ctx context.Context, jobs []job) error {
	var copies []kafka.Record
	for _, j := range jobs {
		if j.copy.Topic != "" {
			copies = append(copies, j.copy)
		}
	}
	if len(copies) == 0 {
		return nil
	}
	return p.Log.ProduceAll(ctx, copies...)
}

// finished is the record that closes a job's letter.
func (p *post) finished(j *job, state State, reason string) kafka.Record {
	end := j.letter
	end.State = state
	p.expect(j, end)
	p.Metrics.closed.WithLabelValues(p.Sink, string(state)).Inc()
	return p.Letters.end(j.letter, state, reason)
}

// anew is the record of a job's letter as it is to be.
func (p *post) anew(j *job, l Letter) kafka.Record {
	p.expect(j, l)
	r := p.open(j.held, l)
	r.Partition = p.id // where its record is from may have had another number of partitions
	return r
}

// expect notes what the record of a job will say.
func (p *post) expect(j *job, l Letter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	j.writing.state, j.writing.version, j.writing.retries = l.State, l.Version, l.Retries
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// missing deals with letters of a round that are not where they stood: they were written
// anew, which shows in a moment, or are lost.
func (p *post) missing(ctx context.Context, jobs, found []job) error {
	if !sleep(ctx, soon) {
		return ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, j := range jobs {
		if slices.ContainsFunc(found, func(f job) bool { return f.id == j.id }) {
			continue
		}
		e, known := p.index.letters[j.id]
		switch {
		case !known || !j.mend && !j.move && e.version > j.news.version:
		case e.offset == j.offset && j.mend:
			return fmt.Errorf("letter %s of version %s was overwritten by an older one and is not in %s/%d at offset %d any more; its row is stale until it changes again or is copied again with lockstep snapshot start --keys",
				letterID(p.Sink, j.id), e.version, p.Topic, p.id, j.offset)
		case j.mend:
			p.mended[j.id] = true
		case j.move:
			p.astray = append(p.astray, j.id)
		default:
			p.void(j.id, j.news)
		}
	}
	p.ring()
	return nil
}

// retry tries letters again that may pass, each at its time.
func (p *post) retry(ctx context.Context) error {
	p.mu.Lock()
	err := p.await(ctx, func() bool { return p.whole })
	p.mu.Unlock()
	wait := p.HoldMin
	for err == nil {
		jobs, next := p.takeDue()
		if len(jobs) == 0 {
			if !p.pauseUntil(ctx, next) {
				break
			}
			continue
		}
		var held bool
		if held, err = p.attempt(ctx, jobs); held && err == nil {
			if !sleep(ctx, wait) {
				break
			}
			wait = min(2*wait, p.HoldMax)
			continue
		}
		wait = p.HoldMin
	}
	return ended(ctx, err)
}

// pauseUntil waits for a time, if there is one, or until something has changed.
func (p *post) pauseUntil(ctx context.Context, at time.Time) bool {
	p.mu.Lock()
	bell := p.bell
	p.mu.Unlock()
	var wake <-chan time.Time
	if !at.IsZero() {
		timer := time.NewTimer(time.Until(at))
		defer timer.Stop()
		wake = timer.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-bell:
	case <-wake:
	}
	return true
}

// takeDue makes the letters of one topic busy that are to be tried again now; when there
// is none it says when there will be.
func (p *post) takeDue() (jobs []job, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	var later []attempt
	var topic uint16
	for len(p.due) > 0 && !p.due[0].at.After(now) && len(jobs) < batchLetters {
		a := p.due.next()
		e, known := p.index.letters[a.id]
		if !known || e.offset != a.offset || !e.is(Retrying) {
			continue // it is closed, or was written anew
		}
		_, void := p.closing[a.id]
		switch {
		case void || p.busy[a.id] != nil || p.owned[p.index.topics[e.origin].topic] == 0:
			a.at = now.Add(time.Second) // it comes to nothing, or the partition of its table to this process
			later = append(later, a)
		case len(jobs) > 0 && e.origin != topic:
			later = append(later, a) // in the next round
		default:
			topic = e.origin
			jobs = append(jobs, job{id: a.id, offset: a.offset, writing: p.write(a.id, Letter{Version: e.version})})
		}
	}
	for _, a := range later {
		p.due.add(a)
	}
	if len(jobs) == 0 && len(p.due) > 0 {
		next = p.due[0].at
	}
	return jobs, next
}

// attempt gives letters to the store again and writes down what came of it. It reports
// whether the store was unavailable for some, of which no attempt is counted.
func (p *post) attempt(ctx context.Context, jobs []job) (held bool, err error) {
	found, err := p.load(ctx, jobs)
	if err != nil || len(found) == 0 {
		return false, err
	}
	var changes []cdc.Change
	for i := range found {
		if found[i].broken == nil {
			changes = append(changes, found[i].change)
		}
	}
	var outcomes []sinks.Outcome
	if len(changes) > 0 {
		outcomes = p.Try(ctx, found[0].letter.Source.Topic, changes)
	}
	if len(outcomes) != len(changes) {
		return false, fmt.Errorf("the store answered %d changes with %d outcomes", len(changes), len(outcomes))
	}
	now := time.Now()
	for i := range found {
		j := &found[i]
		out := sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassUndecodable}
		if j.broken == nil {
			out, outcomes = outcomes[0], outcomes[1:]
		} else {
			out.Reason = "the letter holds no change: " + j.broken.Error()
		}
		if p.tried(j, out, now); j.record.Topic == "" {
			held = true
		}
	}
	if err := p.put(ctx, found); err != nil {
		return held, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, j := range found {
		if j.record.Topic == "" {
			p.due.add(attempt{now, j.id, j.offset})
		}
	}
	return held, nil
}

// tried makes the record that an attempt comes to.
func (p *post) tried(j *job, out sinks.Outcome, now time.Time) {
	var result string
	switch out.Verdict {
	case sinks.Applied, sinks.Duplicate:
		result, j.record = resultResolved, p.finished(j, Resolved, "the store has taken it")
	case sinks.Stale:
		result, j.record = resultSuperseded, p.finished(j, Superseded, "the store has a newer change of the row")
	case sinks.Filtered:
		result, j.record = resultSkipped, p.finished(j, Skipped, "the sink does not take this table any more")
	case sinks.Transient, sinks.Poison:
		again := p.refused(sinks.Refusal{Record: j.held, Change: &j.change, Class: out.Class, Reason: out.Reason, Failed: now})
		again.Retries, again.FirstFailed, again.Undelivered, again.Patched = j.letter.Retries+1, j.letter.FirstFailed, j.letter.Undelivered, j.letter.Patched
		switch {
		case out.Verdict == sinks.Poison:
			result, again.State = resultRefused, Parked
		case again.Retries >= len(p.Retries):
			result, again.State = resultExhausted, Exhausted
		default:
			result, again.State = resultRefused, Retrying
		}
		j.record = p.anew(j, again)
	default:
		result = resultUnavailable
	}
	p.Metrics.attempts.WithLabelValues(p.Sink, j.letter.Table, result).Inc()
}

package bank

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/errgroup"
)

// Workload changes the question bank: edits, new questions with their tags and
// cases, deletes, inserts under a key that was deleted before, keys that change
// and keys that trade places, in transactions of one to some thirty rows.
//
// One Workload at a time may run on a database: it gives out the ids of
// questions itself.
type Workload struct {
	// DB comes from Open.
	DB *sql.DB
	// Rate is the number of transactions per second that are due; they are
	// started when they are due, not when the one before has ended. 0 is as fast
	// as Connections go.
	Rate float64
	// Most is the number of transactions after which a load of some Rate ends by itself, so
	// that a slow machine does not get more of it; 0 is no end.
	Most int64
	// Seed makes another sequence of changes.
	Seed uint64
	// Connections is how many transactions may run at once; 0 is 4.
	Connections int

	lastID  atomic.Uint64
	started atomic.Int64 // transactions taken from the schedule
	mu      sync.Mutex
	counts  counts
	retries int64
	deleted []uint64 // ids of questions that are gone, to be used again
	late    []time.Duration
	begin   time.Time
	end     time.Time
}

// counts are rows as MySQL logged them, and the transactions they were in.
type counts struct{ transactions, inserts, updates, deletes, keyUpdates int64 }

// Stats says what a workload did and how well it kept its schedule.
type Stats struct {
	// Transactions were committed; they held the rows counted below.
	Transactions int64
	Inserts      int64
	// Updates of rows that kept their primary key.
	Updates int64
	Deletes int64
	// KeyUpdates are updates that changed the primary key.
	KeyUpdates int64
	// Retries after a deadlock or a lock wait that timed out.
	Retries int64
	// Elapsed since Run began, until it ended.
	Elapsed time.Duration
	// LateP50, LateP99 and LateMax say how long after it was due a transaction
	// began. All are 0 for a workload without a rate.
	LateP50, LateP99, LateMax time.Duration
}

// Rows is the number of rows changed.
func (s Stats) Rows() int64 { return s.Inserts + s.Updates + s.Deletes + s.KeyUpdates }

// Rate is the number of transactions per second.
func (s Stats) Rate() float64 {
	if s.Elapsed == 0 {
		return 0
	}
	return float64(s.Transactions) / s.Elapsed.Seconds()
}

func (s Stats) String() string {
	text := fmt.Sprintf("%d transactions in %.1f s (%.0f/s): %d rows inserted, %d updated, %d deleted, %d keys changed, %d retried",
		s.Transactions, s.Elapsed.Seconds(), s.Rate(), s.Inserts, s.Updates, s.Deletes, s.KeyUpdates, s.Retries)
	if s.LateMax > 0 {
		text += fmt.Sprintf("; started late by P50 %s, P99 %s, at most %s",
			s.LateP50.Round(time.Microsecond), s.LateP99.Round(time.Microsecond), s.LateMax.Round(time.Microsecond))
	}
	return text
}

// Stats may be called at any time, while Run runs too.
func (w *Workload) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := Stats{
		Transactions: w.counts.transactions,
		Inserts:      w.counts.inserts,
		Updates:      w.counts.updates,
		Deletes:      w.counts.deletes,
		KeyUpdates:   w.counts.keyUpdates,
		Retries:      w.retries,
	}
	switch {
	case !w.end.IsZero():
		s.Elapsed = w.end.Sub(w.begin)
	case !w.begin.IsZero():
		s.Elapsed = time.Since(w.begin)
	}
	if n := len(w.late); n > 0 {
		late := slices.Sorted(slices.Values(w.late))
		s.LateP50, s.LateP99, s.LateMax = late[n/2], late[n*99/100], late[n-1]
	}
	return s
}

// Run writes until ctx ends, lets the transactions under way finish, and
// returns nil; or the first error that is not a deadlock.
func (w *Workload) Run(ctx context.Context) error {
	var last sql.NullInt64
	if err := w.DB.QueryRowContext(ctx, "SELECT MAX(id) FROM questions WHERE id < ?", firstPoison).Scan(&last); err != nil {
		return fmt.Errorf("find the last question: %w", err)
	}
	if !last.Valid {
		return errors.New("the question bank is empty; seed it first")
	}
	w.lastID.Store(uint64(last.Int64))
	w.mu.Lock()
	w.begin = time.Now()
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.end = time.Now()
		w.mu.Unlock()
	}()

	connections := w.Connections
	if connections == 0 {
		connections = 4
	}
	group, ctx := errgroup.WithContext(ctx)
	for i := range connections {
		group.Go(func() error { return w.write(ctx, rand.New(rand.NewPCG(w.Seed, uint64(i)+1))) })
	}
	return group.Wait()
}

// write is one connection: it takes the next place of the schedule, waits for
// its time and runs a transaction.
func (w *Workload) write(ctx context.Context, rng *rand.Rand) error {
	for ctx.Err() == nil {
		if w.Rate > 0 {
			n := w.started.Add(1) - 1
			if w.Most > 0 && n >= w.Most {
				return nil
			}
			due := w.begin.Add(time.Duration(float64(n) / w.Rate * float64(time.Second)))
			if !sleepUntil(ctx, due) {
				return nil
			}
			w.mu.Lock()
			w.late = append(w.late, time.Since(due))
			w.mu.Unlock()
		}
		// What has begun may end, so that the counts are what MySQL committed.
		if err := w.transaction(context.WithoutCancel(ctx), rng); err != nil {
			return err
		}
	}
	return nil
}

func sleepUntil(ctx context.Context, due time.Time) bool {
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// transaction draws one kind of transaction and runs it until it is committed.
func (w *Workload) transaction(ctx context.Context, rng *rand.Rand) error {
	do := w.draw(rng)
	for {
		err := w.attempt(ctx, rng, do)
		if err == nil || !lostLock(err) {
			return err
		}
		w.mu.Lock()
		w.retries++
		w.mu.Unlock()
	}
}

func lostLock(err error) bool {
	refused, ok := errors.AsType[*mysql.MySQLError](err)
	return ok && (refused.Number == 1213 || refused.Number == 1205)
}

func (w *Workload) attempt(ctx context.Context, rng *rand.Rand, do func(*change) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tx, err := w.DB.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback()
	c := &change{ctx: ctx, tx: tx, rng: rng, w: w}
	if err := do(c); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	w.mu.Lock()
	w.counts.transactions++
	w.counts.inserts += c.inserts
	w.counts.updates += c.updates
	w.counts.deletes += c.deletes
	w.counts.keyUpdates += c.keyUpdates
	if room := 1000 - len(w.deleted); room > 0 {
		w.deleted = append(w.deleted, c.freed[:min(room, len(c.freed))]...)
	}
	w.mu.Unlock()
	return nil
}

// draw chooses a transaction by how often each kind occurs, in percent.
func (w *Workload) draw(rng *rand.Rand) func(*change) error {
	kinds := []struct {
		percent int
		do      func(*change) error
	}{
		{40, (*change).edit},
		{10, (*change).read},
		{15, (*change).add},
		{10, (*change).tuneCase},
		{6, (*change).addCase},
		{4, (*change).dropCase},
		{5, (*change).retag},
		{4, (*change).remove},
		{4, (*change).move},
		{2, (*change).swap},
	}
	n := rng.IntN(100)
	for _, k := range kinds {
		if n -= k.percent; n < 0 {
			return k.do
		}
	}
	panic("bank: the percents do not add up to 100")
}

// change is one transaction under way.
type change struct {
	ctx context.Context // of this transaction alone
	tx  *sql.Tx
	rng *rand.Rand
	w   *Workload
	counts
	freed []uint64
}

func (c *change) exec(count *int64, query string, args ...any) error {
	result, err := c.tx.ExecContext(c.ctx, query, args...)
	if err != nil {
		return fmt.Errorf("%.60s: %w", query, err)
	}
	n, err := result.RowsAffected()
	*count += n
	return err
}

// question locks a random question; 0 when there is none.
func (c *change) question() (id uint64, err error) {
	last := c.w.lastID.Load()
	from := 1 + c.rng.Uint64N(last)
	err = c.tx.QueryRowContext(c.ctx, "SELECT id FROM questions WHERE id >= ? AND id <= ? ORDER BY id LIMIT 1 FOR UPDATE", from, last).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("choose a question: %w", err)
	}
	return id, nil
}

// freshID is an id that no row has: mostly a new one, at times one whose row was
// deleted.
func (c *change) freshID() uint64 {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if n := len(c.w.deleted); n > 0 && c.rng.IntN(3) == 0 {
		i := c.rng.IntN(n)
		id := c.w.deleted[i]
		c.w.deleted = slices.Delete(c.w.deleted, i, i+1)
		return id
	}
	return c.w.lastID.Add(1)
}

func (c *change) edit() error {
	id, err := c.question()
	if err != nil || id == 0 {
		return err
	}
	q := newQuestion(c.rng, id)
	switch c.rng.IntN(4) {
	case 0:
		return c.exec(&c.updates, "UPDATE questions SET title=?, statement=?, labels=? WHERE id=?", q.title, q.statement, q.labels, id)
	case 1:
		return c.exec(&c.updates, "UPDATE questions SET status=?, published_at=?, difficulty=? WHERE id=?", q.status, q.published, q.difficulty, id)
	case 2:
		return c.exec(&c.updates, "UPDATE questions SET settings=?, points=? WHERE id=?", q.settings, q.points, id)
	default:
		return c.exec(&c.updates, "UPDATE questions SET views=views+1 WHERE id=?", id)
	}
}

// read counts the views of a page of questions.
func (c *change) read() error {
	from := 1 + c.rng.Uint64N(c.w.lastID.Load())
	return c.exec(&c.updates, "UPDATE questions SET views=views+1 WHERE id BETWEEN ? AND ? ORDER BY id", from, from+uint64(c.rng.IntN(12)))
}

func (c *change) add() error {
	id := c.freshID()
	q := newQuestion(c.rng, id)
	questions := newInsert(c.tx, "questions", questionColumns...)
	links := newInsert(c.tx, "question_tags", linkColumns...)
	cases := newInsert(c.tx, "test_cases", caseColumns...)
	err := questions.add(c.ctx, q.row()...)
	for position, tag := range pickTags(c.rng) {
		err = errors.Join(err, links.add(c.ctx, id, tag, position, q.created))
	}
	for range 1 + c.rng.IntN(4) {
		err = errors.Join(err, cases.add(c.ctx, caseRow(c.rng, id)...))
	}
	for _, in := range []*insert{questions, links, cases} {
		if err == nil {
			err = in.flush(c.ctx)
		}
		c.inserts += in.copied
	}
	return err
}

func (c *change) tuneCase() error {
	id, err := c.question()
	if err != nil || id == 0 {
		return err
	}
	row := caseRow(c.rng, id)
	return c.exec(&c.updates, "UPDATE test_cases SET input=?, expected=?, weight=?, hidden=?, grace=? WHERE question_id=? ORDER BY id LIMIT 3",
		row[2], row[3], row[4], row[5], row[8], id)
}

func (c *change) addCase() error {
	id, err := c.question()
	if err != nil || id == 0 {
		return err
	}
	in := newInsert(c.tx, "test_cases", caseColumns...)
	if err := in.add(c.ctx, caseRow(c.rng, id)...); err != nil {
		return err
	}
	err = in.flush(c.ctx)
	c.inserts += in.copied
	return err
}

func (c *change) dropCase() error {
	id, err := c.question()
	if err != nil || id == 0 {
		return err
	}
	return c.exec(&c.deletes, "DELETE FROM test_cases WHERE question_id=? ORDER BY id DESC LIMIT 1", id)
}

// retag gives a question other tags: deletes and inserts of composite keys, some
// of them the same key within one transaction.
func (c *change) retag() error {
	id, err := c.question()
	if err != nil || id == 0 {
		return err
	}
	if err := c.exec(&c.deletes, "DELETE FROM question_tags WHERE question_id=?", id); err != nil {
		return err
	}
	tags := pickTags(c.rng)
	slices.Sort(tags) // one order of locks on tags for all connections
	for position, tag := range tags {
		if err := c.exec(&c.inserts, "INSERT INTO question_tags (question_id, tag_id, position, added_at) VALUES (?,?,?,NOW(3))", id, tag, position); err != nil {
			return err
		}
		if err := c.exec(&c.updates, "UPDATE tags SET uses=uses+1 WHERE id=?", tag); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) remove() error {
	id, err := c.question()
	if err != nil || id == 0 {
		return err
	}
	for _, query := range []string{
		"DELETE FROM test_cases WHERE question_id=?",
		"DELETE FROM question_tags WHERE question_id=?",
		"DELETE FROM questions WHERE id=?",
	} {
		if err := c.exec(&c.deletes, query, id); err != nil {
			return err
		}
	}
	c.freed = append(c.freed, id)
	return nil
}

// move gives a question another id, and its tags with it.
func (c *change) move() error {
	id, err := c.question()
	if err != nil || id == 0 {
		return err
	}
	to := c.freshID()
	if err := c.exec(&c.keyUpdates, "UPDATE questions SET id=? WHERE id=?", to, id); err != nil {
		return err
	}
	if err := c.exec(&c.keyUpdates, "UPDATE question_tags SET question_id=? WHERE question_id=?", to, id); err != nil {
		return err
	}
	c.freed = append(c.freed, id)
	return c.exec(&c.updates, "UPDATE test_cases SET question_id=? WHERE question_id=?", to, id)
}

// swap lets two questions trade ids inside one transaction.
func (c *change) swap() error {
	a, err := c.question()
	if err != nil || a == 0 {
		return err
	}
	b, err := c.question()
	if err != nil || b == 0 || a == b {
		return err
	}
	between := c.freshID()
	for _, step := range [][2]uint64{{between, a}, {a, b}, {b, between}} {
		if err := c.exec(&c.keyUpdates, "UPDATE questions SET id=? WHERE id=?", step[0], step[1]); err != nil {
			return err
		}
	}
	c.freed = append(c.freed, between)
	return nil
}

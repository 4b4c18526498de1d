package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// stepRates are the transactions of one row per second that are tried in turn, and
// stepLimit the P99 that a rate must hold: from the time a transaction was due until every
// store has its row.
var stepRates = []float64{singleRate, 500, 750, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000}

const stepLimit = 800 * time.Millisecond

// stepWriters is how many transactions may be under way. An application that writes three
// stores itself waits long for each, so it gets many.
const stepWriters = 64

// step is how one rate went.
type step struct {
	rate     float64
	p50, p99 map[string]time.Duration // by what was waited for
	why      string                   // the rate is not held; empty when it is
}

// measureSteps finds the highest rate that lockstep holds and the one that an application
// holds which writes MySQL, Elasticsearch and Redis itself before it answers.
func (b *bench) measureSteps(ctx context.Context) error {
	if b.duration == 0 {
		return nil
	}
	if err := insertRows(ctx, b.db, stepped, 1, liveRows); err != nil {
		return err
	}
	index := b.name + "-" + stepped + "-bare"
	_, err := b.elastic(ctx, http.MethodPut, "/"+index, "application/json", []byte(`{"settings":{"number_of_replicas":0}}`))
	if err != nil {
		return err
	}
	writer := schedule{db: b.db, table: stepped, per: 1, connections: stepWriters, rows: liveRows}
	three := writer
	three.do, err = b.threeStores(ctx, index)
	if err != nil {
		return err
	}
	bare, bareFirst, err := b.climb("an application that writes three stores itself", func(rate float64) (step, error) {
		three.rate = rate
		stats, err := three.run(ctx, b.stepTime())
		if err != nil {
			return step{}, err
		}
		s := step{rate: rate}
		s.judge("answer", quantile(stats.done, .5), quantile(stats.done, .99))
		return s, nil
	})
	if err != nil {
		return err
	}

	p, err := b.pipeline(stepped)
	if err != nil {
		return err
	}
	c, err := b.start(p, "run")
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	rows := liveRows
	held, first, err := b.climb("lockstep", func(rate float64) (step, error) {
		writer.rate = rate
		return b.stepWith(ctx, c, writer, &rows)
	})
	if err != nil {
		return err
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	for _, sink := range []string{search, cache} {
		b.beside("steps."+sink+"_p50", ms(first.p50[sink]), "ms", ms(bareFirst.p50["answer"]))
		b.beside("steps."+sink+"_p99", ms(first.p99[sink]), "ms", ms(bareFirst.p99["answer"]))
	}
	b.beside("steps.rate", held, "transactions/s", bare)
	return c.stop()
}

// stepTime is how long a rate is held.
func (b *bench) stepTime() time.Duration { return max(b.duration/4, 2*time.Second) }

// climb tries one rate after the other until one is not held, and returns the last one that
// was, and how the first one went.
func (b *bench) climb(who string, try func(rate float64) (step, error)) (held float64, first step, err error) {
	for range 3 { // nothing is counted while it warms up
		if _, err := try(stepRates[0]); err != nil {
			return 0, first, err
		}
	}
	for _, rate := range stepRates {
		s, err := try(rate)
		if err != nil {
			return 0, first, err
		}
		if rate == stepRates[0] {
			first = s
		}
		if s.why != "" {
			b.say("steps: %s does not hold %.0f transactions/s: %s", who, rate, s.why)
			return held, first, nil
		}
		b.say("steps: %s holds %.0f transactions/s", who, rate)
		held = rate
	}
	return held, first, nil
}

// judge notes how long something took, and whether that was too long.
func (s *step) judge(what string, p50, p99 time.Duration) {
	if s.p50 == nil {
		s.p50, s.p99 = map[string]time.Duration{}, map[string]time.Duration{}
	}
	s.p50[what], s.p99[what] = p50, p99
	if p99 > stepLimit && s.why == "" {
		s.why = fmt.Sprintf("P99 of %s is %s", what, p99.Round(time.Millisecond))
	}
}

// stepWith writes at one rate for lockstep. The time until a row is in a store is that of
// the application, since the transaction was due, and that of the pipeline, since its
// commit; the sum of two P99 is never less than the P99 of the sum is likely to be.
func (b *bench) stepWith(ctx context.Context, c *child, writer schedule, rows *int) (step, error) {
	s := step{rate: writer.rate}
	before, err := c.awaitBoth(ctx, *rows)
	if err != nil {
		return s, err
	}
	stats, err := writer.run(ctx, b.stepTime())
	if err != nil {
		return s, err
	}
	*rows += stats.rows
	after, err := c.awaitBoth(ctx, *rows)
	if err != nil {
		return s, err
	}
	for _, sink := range []string{search, cache} {
		h := after.histogram("lockstep_sink_latency_seconds", "sink", sink).since(before.histogram("lockstep_sink_latency_seconds", "sink", sink))
		took := func(q float64) time.Duration {
			return quantile(stats.done, q) + time.Duration(h.quantile(q)*float64(time.Second))
		}
		s.judge(sink, took(.5), took(.99))
	}
	return s, nil
}

// threeStores is a transaction of an application without lockstep: it changes the row, writes
// it to Elasticsearch and Redis, and commits only then, so that all three have it or it is
// tried again. The document is at hand, as it is for who has just made the row.
func (b *bench) threeStores(ctx context.Context, index string) (func(context.Context, *sql.Conn, []string) error, error) {
	documents := map[string][]byte{}
	fields := map[string][]any{}
	rows, err := b.db.QueryContext(ctx, `SELECT id, JSON_OBJECT('id', id, 'slug', slug, 'title', title, 'statement', statement, 'difficulty', difficulty,
		'points', points, 'settings', settings, 'views', views, 'updated_at', updated_at) FROM `+database+"."+stepped)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var document []byte
		if err := rows.Scan(&id, &document); err != nil {
			return nil, err
		}
		documents[id] = document
		gjson.ParseBytes(document).ForEach(func(name, value gjson.Result) bool {
			fields[id] = append(fields[id], name.Str, value.String())
			return true
		})
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return func(ctx context.Context, conn *sql.Conn, ids []string) (err error) {
		id := ids[0]
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, tx.Rollback())
			}
		}()
		if _, err = tx.ExecContext(ctx, "UPDATE "+database+"."+stepped+" SET views = views + 1, updated_at = NOW(6) WHERE id = "+id); err != nil {
			return err
		}
		answer, err := b.elastic(ctx, http.MethodPut, "/"+index+"/_doc/"+id+"?filter_path=result,error", "application/json", documents[id])
		if err != nil {
			return err
		}
		if text := string(answer); !strings.Contains(text, `"created"`) && !strings.Contains(text, `"updated"`) {
			return fmt.Errorf("put document %s: Elasticsearch answers %s", id, text)
		}
		if err = b.redis.HSet(ctx, b.name+":"+stepped+"-bare:"+id, fields[id]...).Err(); err != nil {
			return err
		}
		return tx.Commit()
	}, nil
}

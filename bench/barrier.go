package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/tidwall/gjson"
	"golang.org/x/sync/errgroup"
)

const (
	// barrierWrites are measured for each sink, barrierPause apart.
	barrierWrites = 400
	barrierPause  = 25 * time.Millisecond
	// lookEvery is how often the store is asked whether it has a row.
	lookEvery = time.Millisecond
	// together is how many barriers wait at once, in the second half.
	together = 50
)

// measureBarrier commits a row at a time and waits for it in two ways at once: at a barrier,
// and by asking the store over and over. What the first needs more than the second is what a
// barrier adds to the pipeline's own latency.
func (b *bench) measureBarrier(ctx context.Context) error {
	if err := insertRows(ctx, b.db, guarded, 1, liveRows); err != nil {
		return err
	}
	p, err := b.pipeline(guarded)
	if err != nil {
		return err
	}
	c, err := b.start(p, "run")
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	if _, err := c.awaitBoth(ctx, liveRows); err != nil {
		return err
	}
	for _, sink := range []string{cache, search} {
		b.say("barrier: %d transactions of one row, each waited for in %s", barrierWrites, sink)
		if err := b.barrierOf(ctx, p, sink); err != nil {
			return fmt.Errorf("barrier of %s: %w", sink, err)
		}
	}
	b.say("barrier: %d at once", together)
	if err := b.barriersTogether(ctx, p); err != nil {
		return err
	}
	return c.stop()
}

func (b *bench) barrierOf(ctx context.Context, p *pipeline, sink string) error {
	var visible, barrier, added []time.Duration
	for n := range barrierWrites + 50 {
		id := 1 + n
		title := fmt.Sprintf("%s behind barrier %d", sink, n)
		if _, err := b.db.ExecContext(ctx, "UPDATE "+database+"."+guarded+" SET title = ? WHERE id = ?", title, id); err != nil {
			return err
		}
		committed := time.Now()
		var seen, passed time.Duration
		g, both := errgroup.WithContext(ctx)
		g.Go(func() error {
			for {
				has, err := b.title(both, p, sink, id)
				seen = time.Since(committed)
				if err != nil || has == title {
					return err
				}
				if !pause(both, lookEvery) {
					return both.Err()
				}
			}
		})
		g.Go(func() error {
			err := passBarrier(both, p, sink)
			passed = time.Since(committed)
			return err
		})
		if err := g.Wait(); err != nil {
			return err
		}
		if has, err := b.title(ctx, p, sink, id); err != nil || has != title {
			return fmt.Errorf("row %d is %q behind the barrier, not %q (%w)", id, has, title, err)
		}
		if n >= 50 { // the first ones warm everything up
			visible, barrier, added = append(visible, seen), append(barrier, passed), append(added, passed-seen)
		}
		if !pause(ctx, barrierPause) {
			return ctx.Err()
		}
	}
	slices.Sort(visible)
	slices.Sort(barrier)
	slices.Sort(added)
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	b.beside("barrier."+sink+"_p50", ms(quantile(barrier, .5)), "ms", ms(quantile(visible, .5)))
	b.beside("barrier."+sink+"_p99", ms(quantile(barrier, .99)), "ms", ms(quantile(visible, .99)))
	b.add("barrier."+sink+"_added_p50", ms(quantile(added, .5)), "ms")
	b.add("barrier."+sink+"_added_p99", ms(quantile(added, .99)), "ms")
	return nil
}

// barriersTogether has many wait at once.
func (b *bench) barriersTogether(ctx context.Context, p *pipeline) error {
	var took []time.Duration
	for range 20 {
		of := make([]time.Duration, together)
		g, all := errgroup.WithContext(ctx)
		if _, err := b.db.ExecContext(ctx, "UPDATE "+database+"."+guarded+" SET views = views + 1 WHERE id = 1"); err != nil {
			return err
		}
		for i := range of {
			g.Go(func() error {
				began := time.Now()
				err := passBarrier(all, p, cache)
				of[i] = time.Since(began)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		took = append(took, of...)
	}
	slices.Sort(took)
	b.add("barrier.together_p50", quantile(took, .5).Seconds()*1000, "ms")
	b.add("barrier.together_p99", quantile(took, .99).Seconds()*1000, "ms")
	return nil
}

// passBarrier returns when the API says that all is visible.
func passBarrier(ctx context.Context, p *pipeline, sink string) error {
	query := url.Values{"sink": {sink}, "table": {database + "." + guarded}, "timeout": {"20s"}}
	body, err := get(ctx, "http://"+p.admin+"/v1/barrier?"+query.Encode())
	if err != nil {
		return err
	}
	var answer struct{ Visible bool }
	if err := json.Unmarshal(body, &answer); err != nil || !answer.Visible {
		return fmt.Errorf("the barrier is not passed: %s (%w)", body, err)
	}
	return nil
}

// title is what a store has of a row.
func (b *bench) title(ctx context.Context, p *pipeline, sink string, id int) (string, error) {
	if sink == cache {
		title, err := b.redis.HGet(ctx, fmt.Sprint(p.keys, id), "title").Result()
		if errors.Is(err, goredis.Nil) {
			err = nil
		}
		return title, err
	}
	body, err := get(ctx, fmt.Sprintf("%s/%s/_doc/%d", b.servers.elastic.URL, p.index, id))
	return gjson.GetBytes(body, "_source.title").Str, err
}

func get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", address, res.Status, body)
	}
	return body, err
}

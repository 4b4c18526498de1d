package elastic

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
)

// watchEvery is how often Run looks whether the aliases are there.
const watchEvery = 30 * time.Second

// aliasBytes bounds the names in one request, whose line may have 4 KB.
const aliasBytes = 3000

// Run looks at the index of every table when it begins, so that the log tells early what
// is wrong, and until ctx ends it sees within a minute that an index or its alias is gone,
// whether changes come or not: an index is made again. It removes the tombstones that have
// been kept long enough, and measures when documents can be searched for. tables lists what the sink takes.
func (s *Sink) Run(ctx context.Context, tables func(context.Context) ([]cdc.TableName, error)) error {
	var seekers sync.WaitGroup
	defer seekers.Wait()
	seekers.Go(func() { s.findSought(ctx) })
	watch := time.NewTicker(s.watchEvery)
	defer watch.Stop()
	lap := time.NewTicker(min(time.Hour, s.config.TombstoneKeep/10))
	defer lap.Stop()
	do, failing := s.lap, false
	for {
		err := do(ctx, tables)
		if err != nil && !failing && ctx.Err() == nil {
			s.log.Warn("not every index could be looked at, trying again", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-lap.C:
			do = s.lap
		case <-watch.C:
			do = s.watch
		}
	}
}

// lap looks at every index and removes old tombstones.
func (s *Sink) lap(ctx context.Context, tables func(context.Context) ([]cdc.TableName, error)) error {
	names, err := tables(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		t := s.table(name)
		if t == nil {
			continue
		}
		index, err := s.attend(ctx, t)
		if err == nil && index != nil {
			_, err = s.expire(ctx, t, index, time.Now().Add(-s.config.TombstoneKeep))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// watch asks for the aliases of all tables at once, and looks at those tables whose alias
// is gone, leads to another index, or that were in trouble.
func (s *Sink) watch(ctx context.Context, tables func(context.Context) ([]cdc.TableName, error)) error {
	names, err := tables(ctx)
	if err != nil {
		return err
	}
	var all []*table
	for _, name := range names {
		if t := s.table(name); t != nil && t.wrong == nil {
			all = append(all, t)
		}
	}
	uuids, err := s.aliases(ctx, all)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range all {
		uuid, there := uuids[t.alias]
		if there {
			t.absent = false
		}
		switch {
		case t.troubled():
			s.ready(ctx, t, 0) // as a change would
		case there && !t.has(uuid):
			if _, err := s.attend(ctx, t); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
			}
		case !there && !t.absent:
			_, err := s.attend(ctx, t)
			if t.absent = err == nil && !t.troubled(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (t *table) troubled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trouble != nil
}

// aliases gives the uuid of the index behind the alias of each table that has its alias.
func (s *Sink) aliases(ctx context.Context, all []*table) (map[string]string, error) {
	uuids, missing := make(map[string]string), true
	for len(all) > 0 {
		var names []string
		for size := 0; len(all) > 0 && (size == 0 || size+len(all[0].alias) < aliasBytes); all = all[1:] {
			names = append(names, all[0].alias)
			size += len(all[0].alias) + 1
		}
		res, err := s.do(ctx, esapi.IndicesGetRequest{Index: names, IgnoreUnavailable: &missing, FilterPath: []string{"*.aliases", "*.settings.index.uuid"}})
		if err != nil {
			return nil, fmt.Errorf("look for %d aliases: %w", len(names), err)
		}
		if res.status != http.StatusOK {
			return nil, fmt.Errorf("look for %d aliases: %w", len(names), res.answer)
		}
		gjson.ParseBytes(res.body).ForEach(func(_, index gjson.Result) bool {
			index.Get("aliases").ForEach(func(alias, _ gjson.Result) bool {
				uuids[alias.Str] = index.Get("settings.index.uuid").Str
				return true
			})
			return true
		})
	}
	return uuids, nil
}

// attend looks at the index of a table, notes what is wrong with it, and makes one that is
// gone again. It returns the index if all is well with it.
func (s *Sink) attend(ctx context.Context, t *table) (*index, error) {
	index, err := s.survey(ctx, t)
	s.say(ctx, t, err)
	switch {
	case ofCluster(err):
		return nil, err
	case err != nil:
		t.forget() // the next change is not to be written to it
		return nil, nil
	case index == nil:
		return nil, s.restore(ctx, t)
	}
	return index, s.recognize(ctx, t, index)
}

// recognize sees to it that an index is the table's.
func (s *Sink) recognize(ctx context.Context, t *table, index *index) error {
	t.work.Lock()
	defer t.work.Unlock()
	if index.made().UUID != index.Settings.Index.UUID { // a change may have seen to it since
		var err error
		if index, err = s.look(ctx, t); err != nil || index == nil {
			return err
		}
	}
	err := s.adopt(ctx, t, index)
	t.had.Store(t.had.Load() || err == nil)
	return err
}

// restore makes the index of a table again that had one before.
func (s *Sink) restore(ctx context.Context, t *table) error {
	if _, err := s.describe(ctx, t.name); err != nil {
		if errors.Is(err, cdc.ErrNoTable) {
			return nil // whoever took the index away may have known
		}
		return err
	}
	t.work.Lock()
	index, err := s.look(ctx, t) // a change may have made it since
	lost := false
	if err == nil && index == nil {
		lost, err = s.refill(ctx, t)
	}
	t.work.Unlock()
	if lost {
		t.forget()
		s.ready(ctx, t, 0) // says what keeps it from being made
	}
	return err
}

// refill tells Refill, once, that the index of a table is gone. The caller holds t.work.
func (s *Sink) refill(ctx context.Context, t *table) (lost bool, err error) {
	if s.Refill == nil || t.refilled {
		return t.refilled, nil
	}
	t.refilled, err = s.Refill(ctx, t.name, t.had.Load())
	return t.refilled, err
}

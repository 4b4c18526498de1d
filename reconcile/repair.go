package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
)

// What came of a repair.
const (
	Repaired = "repaired"
	Remains  = "remains"
)

// repairBatch is how many rows are read again together at most.
const repairBatch = cdc.MaxRequestKeys

// repairTries is how often what differs is written anew. Whoever else deletes or writes a
// document of Elasticsearch raises its version by one, and where nothing is written to the
// source a row that is read again gets no more than that, but more each time.
const repairTries = 2

// repair has the rows of all mismatches written anew, and compares them again.
func (p *Pass) repair(ctx context.Context, sides []*side) error {
	for try := range repairTries {
		if err := p.repairOnce(ctx, sides, try); err != nil {
			return err
		}
	}
	for _, s := range sides {
		s.result.Remaining += int64(len(s.result.repair))
		s.result.repair = nil
	}
	return nil
}

func (p *Pass) repairOnce(ctx context.Context, sides []*side, try int) error {
	var keys [][]byte
	for _, s := range sides {
		for _, f := range s.result.repair {
			keys = append(keys, f.Key)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	slices.SortFunc(keys, func(a, b []byte) int { return slices.Compare(a, b) })
	keys = slices.CompactFunc(keys, func(a, b []byte) bool { return string(a) == string(b) })
	p.progress.doing.Store("repairs")
	for _, s := range sides {
		if err := s.free(ctx); err != nil {
			return fmt.Errorf("repair %s in sink %s: %w", p.Table, s.target.Name, err)
		}
	}
	batch := repairBatch
	if p.Rate > 0 {
		batch = min(batch, p.Rate)
	}
	for part := range slices.Chunk(keys, batch) {
		began := time.Now()
		if err := p.World.Reread(ctx, p.Table, try, part); err != nil {
			return fmt.Errorf("repair %s: %w", p.Table, err)
		}
		if p.Rate > 0 {
			rest := time.Duration(len(part))*time.Second/time.Duration(p.Rate) - time.Since(began)
			select {
			case <-time.After(rest):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	for _, s := range sides {
		if err := s.verify(ctx); err != nil {
			return err
		}
	}
	return nil
}

// free lets go of what has a version that no repair could outrank.
func (s *side) free(ctx context.Context) error {
	store, ok := s.target.Store.(sinks.Freer)
	if !ok || len(s.result.repair) == 0 {
		return nil
	}
	source, err := s.World.Open(ctx, s.Table, "")
	if err != nil {
		return err
	}
	defer source.Close()
	c := &Checker{World: s.World, Target: s.target, Source: source}
	at, err := c.settled(ctx)
	if err != nil {
		return err
	}
	var of []*suspect
	var versions []cdc.Version
	for _, f := range s.result.repair {
		if f.Version > at.Newest {
			of, versions = append(of, &suspect{key: f.Key, found: f.found}), append(versions, f.Version)
		}
	}
	if len(of) == 0 {
		return nil
	}
	rows, err := c.rows(of)
	if err != nil {
		return err
	}
	_, layout := source.Table()
	changes := make([]cdc.Change, len(of))
	for i, one := range of {
		if changes[i] = changeOf(s.Table, layout, cdc.Row{Key: one.key, Row: rows[string(one.key)]}); one.found != nil {
			changes[i] = one.found.Change
		}
	}
	return store.Free(ctx, changes, versions)
}

// verify compares the rows that were repaired again, and keeps those that still differ.
func (s *side) verify(ctx context.Context) error {
	of := s.result.repair
	if len(of) == 0 {
		return nil
	}
	bad := map[string]bool{}
	id := func(key []byte, found *sinks.Found) string { return (&suspect{key: key, found: found}).id() }
	suspects := make(chan *suspect, len(of))
	for _, f := range of {
		suspects <- &suspect{key: f.Key, found: f.found}
	}
	close(suspects)
	err := s.confirm(ctx, <-suspects, suspects, func(f Finding) { bad[id(f.Key, f.found)] = true }, func(s *suspect, _ string) { bad[s.id()] = true })
	if err != nil {
		return err
	}
	s.result.repair = slices.DeleteFunc(of, func(f *Finding) bool {
		if f.Repair = Repaired; bad[id(f.Key, f.found)] {
			f.Repair = Remains
			return false
		}
		s.result.Repaired++
		return true
	})
	return nil
}

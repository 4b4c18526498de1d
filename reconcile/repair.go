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

// repair has the rows of all mismatches written anew, and compares them again.
func (p *Pass) repair(ctx context.Context, sides []*side) error {
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
	batch := repairBatch
	if p.Rate > 0 {
		batch = min(batch, p.Rate)
	}
	for part := range slices.Chunk(keys, batch) {
		began := time.Now()
		if err := p.World.Reread(ctx, p.Table, part); err != nil {
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

// verify compares the rows that were repaired again.
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
	for _, f := range of {
		if f.Repair = Repaired; bad[id(f.Key, f.found)] {
			f.Repair = Remains
			s.result.Remaining++
		} else {
			s.result.Repaired++
		}
	}
	s.result.repair = nil
	return nil
}

package mysql

import (
	"slices"

	"lockstep/cdc"
)

// schedule notes a copy of a table.
func (s *Source) schedule(sn cdc.Snapshot) {
	s.pos.Snapshots = append(slices.Clone(s.pos.Snapshots), sn)
}

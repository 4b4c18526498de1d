package mysql

import (
	"slices"

	"lockstep/cdc"
)

// To be dropped at the merge: the snapshots of another branch.

func (s *Source) schedule(sn cdc.Snapshot) {
	if slices.ContainsFunc(s.pos.Snapshots, func(o cdc.Snapshot) bool { return o.ID == sn.ID }) {
		return
	}
	sn.State = cdc.SnapshotRunning
	s.pos.Snapshots = append(slices.Clip(s.pos.Snapshots), sn)
	for i := range sn.Table {
		if sn.Table[i] == '.' {
			s.addCopied(cdc.TableName{DB: sn.Table[:i], Table: sn.Table[i+1:]})
			return
		}
	}
}

func (s *Source) cancelSnapshots(t cdc.TableName, why string) {
	s.pos.Snapshots = slices.DeleteFunc(slices.Clone(s.pos.Snapshots), func(sn cdc.Snapshot) bool { return sn.Table == t.String() })
}

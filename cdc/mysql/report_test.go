package mysql

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"lockstep/cdc"
)

func TestARepairOfRowsDoesNotHideACopyThatHasFailed(t *testing.T) {
	s := &Source{Metrics: NewMetrics(prometheus.NewRegistry())}
	shows := func(want cdc.SnapshotState, snapshots ...cdc.Snapshot) {
		t.Helper()
		s.pos.Snapshots = snapshots
		s.report()
		if n := testutil.ToFloat64(s.Metrics.copyState.WithLabelValues("a.b", string(want))); n != 1 {
			t.Errorf("%+v: the state is not %s", snapshots, want)
		}
	}
	failed := cdc.Snapshot{ID: "a.b-1", Table: "a.b", State: cdc.SnapshotFailed}
	repair := cdc.Snapshot{ID: cdc.ReplayPrefix + "reconcile-a.b-1.1", Table: "a.b", Keys: 1, State: cdc.SnapshotDone}
	shows(cdc.SnapshotFailed, failed, repair)
	repair.State = cdc.SnapshotRunning
	shows(cdc.SnapshotFailed, failed, repair)
	shows(cdc.SnapshotRunning, repair)
	shows(cdc.SnapshotDone, failed, cdc.Snapshot{ID: "a.b-2", Table: "a.b", State: cdc.SnapshotDone}, repair)
}

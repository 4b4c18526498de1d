package mysql

import (
	"sync"

	"lockstep/cdc"
)

// snapshots copies rows beside the log. The reader holds mu while it handles an
// event, so whoever else holds it sees the position between two events and may
// publish.
type snapshots struct {
	mu sync.Mutex
}

// touched hears of every change of a captured table before it is published.
func (s *snapshots) touched(t cdc.TableName, key []byte) {}

// boundary hears that the position has moved behind a transaction.
func (s *snapshots) boundary() {}

// disturbed hears of a statement that changes a table as a whole: chunks of it that
// are under way are read again.
func (s *snapshots) disturbed(t cdc.TableName) {}

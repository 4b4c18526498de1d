package kafka

import "context"

// Room returns when what is published and not acknowledged is at most a quarter of
// the budget, so that what can wait does not fill the queue in front of what cannot.
func (p *Publisher) Room(ctx context.Context) error {
	for {
		if rest := p.size - p.size/4; p.budget.TryAcquire(rest) {
			p.budget.Release(rest)
			return nil
		}
		if err := p.Flush(ctx); err != nil {
			return err
		}
	}
}

// Room returns when little of what was published is unacknowledged.
func (l *ChangeLog) Room(ctx context.Context) error { return l.publisher.Room(ctx) }

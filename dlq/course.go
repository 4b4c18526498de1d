package dlq

import (
	"fmt"
	"time"
)

const (
	// A job has so many letters under way at most, and so many batches of them.
	flightLetters = 10_000
	flightBatches = 16
	// resyncLetters is how many rows are read again at once, and resyncBytes bounds
	// their keys.
	resyncLetters = 1000
	resyncBytes   = 256 << 10
)

// course decides how fast a job goes and whether it goes on. It knows no letters, only
// how many there are.
type course struct {
	batch  int // letters
	most   int // letters under way
	rate   int // letters a second; 0 is no limit
	canary int
	due    time.Time // when the next may begin
}

func newCourse(j *Job) course {
	c := course{batch: resyncLetters, most: flightLetters, rate: j.Rate, canary: j.Canary}
	if j.Mode == Payload {
		c.batch, c.most = batchLetters, batchLetters // the answer comes at once
	}
	return c
}

// room is how many letters the next batch may have: of those before it so many are done
// and so many under way. When it is none until a time, it says when.
func (c *course) room(now time.Time, done, underWay int) (letters int, at time.Time) {
	n := min(c.batch, c.most-underWay)
	if left := c.canary - done; left > 0 { // no batch goes over the end of the canary
		n = min(n, left-underWay)
	}
	if n <= 0 {
		return 0, time.Time{}
	}
	if c.rate > 0 {
		if now.Before(c.due) {
			return 0, c.due
		}
		n = min(n, c.rate)
	}
	return n, time.Time{}
}

// began notes that a batch of so many letters has begun.
func (c *course) began(now time.Time, letters int) {
	if c.rate == 0 {
		return
	}
	if c.due.Before(now) {
		c.due = now
	}
	c.due = c.due.Add(time.Duration(letters) * time.Second / time.Duration(c.rate))
}

// stop says why a job must not go on behind its canary, when it is through with that and
// nothing more. It is empty when it may.
func (c *course) stop(p *Progress) string {
	done, stay := p.done(), p.Letters[FateStays]
	if c.canary == 0 || done != c.canary || done == p.Total || (done-stay)*100 >= CanaryShare*done {
		return ""
	}
	why := ""
	for _, s := range p.Stays {
		if why == "" {
			why = "; the first that stays: " + s.Example + ", " + s.Reason
		}
	}
	return fmt.Sprintf("of the canary of %d letters %d stay, which is more than %d %%; the others were not touched%s", done, stay, 100-CanaryShare, why)
}

package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis is emptied under load, and while nobody runs; a doctor sees it, and the
// sink mends it.
func TestARedisThatIsEmptiedIsFilledAgain(t *testing.T) {
	w := newWorld(t, 100)
	cache := redis.NewClient(&redis.Options{Addr: w.spec.RedisAddr})
	t.Cleanup(func() { cache.Close() })
	p := w.start("run")
	w.equal(time.Minute)
	end := w.load(200, 8)
	waitFor(t, 2*time.Second)
	if err := cache.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 2*time.Second)
	end()
	w.equal(time.Minute)
	p.stop()

	if err := cache.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	losses := func() (found struct {
		OK          bool
		Detail, Fix string
	}) { var all []struct {
		System, Check string
		OK            bool
		Detail, Fix   string
	}; w.doctor(&all); for _, f := range all {
		if f.System == "sink cache" && f.Check == "losses" {
			found.OK, found.Detail, found.Fix = f.OK, f.Detail, f.Fix
		}
	}; return found }
	if f := losses(); f.OK || !strings.Contains(f.Detail, ".questions/0") || !strings.Contains(f.Fix, "lockstep sink cache") {
		t.Errorf("the doctor says %+v", f)
	}
	p = w.start("run")
	w.equal(time.Minute)
	p.stop()
	if f := losses(); !f.OK {
		t.Errorf("the doctor says %+v", f)
	}
	if log, _ := os.ReadFile(p.log); !strings.Contains(string(log), "the store has nothing of this partition any more") {
		t.Errorf("the log says\n%s", log)
	}
}

package freshness

import (
	"reflect"
	"testing"

	"lockstep/kafka"
)

// A watermark of any bytes is one of the known format, which comes back, or refused.
func FuzzAWatermarkOfAnyBytes(f *testing.F) {
	seed, err := Record{}.encode("shop")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed.Value)
	f.Add([]byte(`{"format":3,"sink":{"name":"es","tables":{"bank.questions":{"partitions":{"0":{"settled":7,"letters":-1}},"latency":{"counts":[1,2]},"letters":0}}}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := Decode(kafka.Record{Value: value})
		if err != nil {
			return
		}
		text, err := r.encode("shop")
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(text)
		if err != nil {
			t.Fatalf("%s: %v", text.Value, err)
		}
		twice, err := again.encode("shop")
		if err != nil || !reflect.DeepEqual(text.Value, twice.Value) {
			t.Fatalf("%s came back as %s, %v", text.Value, twice.Value, err)
		}
	})
}

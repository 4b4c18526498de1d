package shape

import (
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"lockstep/cdc"
)

// kind says how a store indexes what the expression gives. Of a list that is what it
// holds: an array is indexed like its items.
func (x *expression) kind() (cdc.Kind, error) {
	if kind, ok := kindOf(x.out); ok {
		return kind, nil
	}
	return "", fmt.Errorf("%s: gives %s, which no field can hold; make it text or a number with string(), int() or double()", x.place, x.out)
}

func kindOf(t *cel.Type) (cdc.Kind, bool) {
	switch t.Kind() {
	case types.BoolKind:
		return cdc.KindBool, true
	case types.IntKind:
		return cdc.KindInt, true
	case types.UintKind:
		return cdc.KindUint, true
	case types.DoubleKind:
		return cdc.KindDouble, true
	case types.StringKind:
		return cdc.KindKeyword, true
	case types.BytesKind:
		return cdc.KindBytes, true
	case types.TimestampKind:
		return cdc.KindTimestamp, true
	case types.DynKind, types.MapKind:
		return cdc.KindJSON, true
	case types.ListKind:
		kind, ok := kindOf(t.Parameters()[0])
		if kind == cdc.KindKeyword {
			kind = cdc.KindSet
		}
		return kind, ok
	}
	return "", false
}

// append appends what the expression gives for a row, as JSON.
func (x *expression) append(dst []byte, r *row) ([]byte, error) {
	value, err := x.eval(r)
	if err != nil {
		return dst, err
	}
	out, ok := appendValue(dst, value)
	if !ok {
		return dst, x.fail("it gives a value that JSON cannot hold")
	}
	return out, nil
}

func appendValue(dst []byte, value ref.Val) ([]byte, bool) {
	switch v := value.(type) {
	case types.Null:
		return append(dst, "null"...), true
	case types.Bool:
		return strconv.AppendBool(dst, bool(v)), true
	case types.Int:
		return strconv.AppendInt(dst, int64(v), 10), true
	case types.Uint:
		return strconv.AppendUint(dst, uint64(v), 10), true
	case types.Double:
		return appendDouble(dst, float64(v))
	case types.String:
		return cdc.AppendString(dst, string(v)), true
	case types.Bytes:
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, v)
		return append(dst, '"'), true
	case types.Timestamp:
		dst = append(dst, '"')
		dst = v.Time.UTC().AppendFormat(dst, time.RFC3339Nano)
		return append(dst, '"'), true
	case traits.Mapper:
		return appendMap(dst, v)
	case traits.Lister:
		return appendList(dst, v)
	}
	return dst, false
}

// appendDouble writes a number as rows have it.
func appendDouble(dst []byte, f float64) ([]byte, bool) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return dst, false
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, 64), true
}

func appendList(dst []byte, list traits.Lister) ([]byte, bool) {
	dst = append(dst, '[')
	first, ok := true, true
	for it := list.Iterator(); ok && it.HasNext() == types.True; first = false {
		if !first {
			dst = append(dst, ',')
		}
		dst, ok = appendValue(dst, it.Next())
	}
	return append(dst, ']'), ok
}

// appendMap writes the fields in the order of their names: a map has none of its own.
func appendMap(dst []byte, m traits.Mapper) ([]byte, bool) {
	type field struct {
		name  string
		value ref.Val
	}
	var fields []field
	for it := m.Iterator(); it.HasNext() == types.True; {
		key := it.Next()
		name, ok := key.(types.String)
		if !ok {
			return dst, false
		}
		fields = append(fields, field{string(name), m.Get(key)})
	}
	slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
	dst = append(dst, '{')
	for i, f := range fields {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(cdc.AppendString(dst, f.name), ':')
		var ok bool
		if dst, ok = appendValue(dst, f.value); !ok {
			return dst, false
		}
	}
	return append(dst, '}'), true
}

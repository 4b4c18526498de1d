package mysql

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
)

// What geometry may be.
const (
	geometryJSON = "geojson"
	geometryWKT  = "wkt"
	geometryWKB  = "wkb"
)

// maxGeometryDepth bounds collections inside collections.
const maxGeometryDepth = 100

// The types of WKB.
const (
	wkbPoint = 1 + iota
	wkbLineString
	wkbPolygon
	wkbMultiPoint
	wkbMultiLineString
	wkbMultiPolygon
	wkbCollection
)

var geometryNames = [...][2]string{{}, {"Point", "POINT"}, {"LineString", "LINESTRING"}, {"Polygon", "POLYGON"},
	{"MultiPoint", "MULTIPOINT"}, {"MultiLineString", "MULTILINESTRING"}, {"MultiPolygon", "MULTIPOLYGON"}, {"GeometryCollection", "GEOMETRYCOLLECTION"}}

// appendGeometry appends a GEOMETRY, which MySQL keeps as its SRID in four bytes
// and WKB. Coordinates stay in the order of that WKB, in which longitude comes
// first whatever the reference system says; ST_AsText turns them around for
// some.
func (c *column) appendGeometry(dst, v []byte) ([]byte, error) {
	if c.geometry == geometryWKB {
		return appendBase64(dst, v, 0), nil
	}
	if len(v) < 4 {
		return dst, errDamaged
	}
	srid := binary.LittleEndian.Uint32(v)
	w := wkb{b: v[4:], text: c.geometry == geometryWKT}
	if w.text {
		dst = append(dst, '"')
		if srid != 0 {
			dst = append(dst, "SRID="...)
			dst = strconv.AppendUint(dst, uint64(srid), 10)
			dst = append(dst, ';')
		}
	}
	dst = w.geometry(dst, 0)
	if w.bad || len(w.b) > 0 {
		return dst, errDamaged
	}
	if w.text {
		return append(dst, '"'), nil
	}
	if srid != 0 { // as in ST_AsGeoJSON(g, 17, 2)
		dst = append(dst[:len(dst)-1], `,"crs":{"type":"name","properties":{"name":"EPSG:`...)
		dst = strconv.AppendUint(dst, uint64(srid), 10)
		dst = append(dst, `"}}}`...)
	}
	return dst, nil
}

// wkb reads WKB from the front of b and writes WKT or GeoJSON. Bad says that it
// is damaged.
type wkb struct {
	b    []byte
	text bool
	bad  bool
}

func (w *wkb) take(n int) []byte {
	if n > len(w.b) {
		w.bad, w.b = true, nil
		return make([]byte, n)
	}
	v := w.b[:n]
	w.b = w.b[n:]
	return v
}

func (w *wkb) header() (typ uint32) {
	if w.take(1)[0] != 1 { // MySQL writes little-endian WKB alone
		w.bad = true
	}
	return w.count()
}

func (w *wkb) count() uint32 { return binary.LittleEndian.Uint32(w.take(4)) }

func (w *wkb) geometry(dst []byte, depth int) []byte {
	typ := w.header()
	if typ < wkbPoint || typ > wkbCollection || depth > maxGeometryDepth {
		w.bad = true
	}
	if w.bad {
		return dst
	}
	if w.text {
		dst = append(dst, geometryNames[typ][1]...)
		if typ != wkbPoint && len(w.b) >= 4 && binary.LittleEndian.Uint32(w.b) == 0 {
			w.count()
			return append(dst, " EMPTY"...)
		}
		if typ == wkbPoint {
			dst = append(dst, '(')
			return append(w.point(dst), ')')
		}
		return w.elements(dst, typ, depth)
	}
	dst = append(dst, `{"type":"`...)
	dst = append(dst, geometryNames[typ][0]...)
	if typ == wkbCollection {
		dst = append(dst, `","geometries":`...)
	} else {
		dst = append(dst, `","coordinates":`...)
	}
	if typ == wkbPoint {
		dst = w.bracketed(dst)
	} else {
		dst = w.elements(dst, typ, depth)
	}
	return append(dst, '}')
}

// elements appends a list: the points of a line, the rings of a polygon, the
// parts of the rest.
func (w *wkb) elements(dst []byte, typ uint32, depth int) []byte {
	opening, closing := byte('['), byte(']')
	if w.text {
		opening, closing = '(', ')'
	}
	dst = append(dst, opening)
	for i := range w.count() {
		if w.bad {
			return dst
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		switch typ {
		case wkbLineString:
			if w.text {
				dst = w.point(dst)
			} else {
				dst = w.bracketed(dst)
			}
		case wkbPolygon:
			dst = w.elements(dst, wkbLineString, depth)
		case wkbCollection:
			dst = w.geometry(dst, depth+1)
		default: // each part has a header of its own
			part := typ - wkbMultiPoint + wkbPoint
			if w.header() != part {
				w.bad = true
			} else if part == wkbPoint {
				dst = w.bracketed(dst)
			} else {
				dst = w.elements(dst, part, depth)
			}
		}
	}
	return append(dst, closing)
}

func (w *wkb) bracketed(dst []byte) []byte {
	if w.text {
		return append(w.point(append(dst, '(')), ')')
	}
	return append(w.point(append(dst, '[')), ']')
}

func (w *wkb) point(dst []byte) []byte {
	v := w.take(16)
	x, y := math.Float64frombits(binary.LittleEndian.Uint64(v)), math.Float64frombits(binary.LittleEndian.Uint64(v[8:]))
	if math.IsNaN(x+y) || math.IsInf(x, 0) || math.IsInf(y, 0) {
		w.bad = true
	}
	separator := byte(',')
	if w.text {
		separator = ' '
	}
	dst = appendFloat(dst, x, 64)
	return appendFloat(append(dst, separator), y, 64)
}

// appendVector appends a VECTOR, an array of FLOAT.
func appendVector(dst, v []byte) ([]byte, error) {
	if len(v)%4 != 0 {
		return dst, errDamaged
	}
	dst = append(slices.Grow(dst, 3*len(v)), '[')
	for i := 0; i < len(v); i += 4 {
		if i > 0 {
			dst = append(dst, ',')
		}
		f := float64(math.Float32frombits(binary.LittleEndian.Uint32(v[i:])))
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return dst, errDamaged
		}
		dst = appendFloat(dst, f, 32)
	}
	return append(dst, ']'), nil
}

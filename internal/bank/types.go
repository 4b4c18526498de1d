package bank

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

const createAllTypes = `CREATE TABLE all_types (
  id          bigint unsigned NOT NULL,
  t_tiny      tinyint,
  t_tiny_u    tinyint unsigned,
  t_bool      boolean,
  t_small     smallint,
  t_small_u   smallint unsigned,
  t_medium    mediumint,
  t_medium_u  mediumint unsigned,
  t_int       int,
  t_int_u     int unsigned,
  t_big       bigint,
  t_big_u     bigint unsigned,
  t_decimal   decimal(10,2),
  t_decimal_l decimal(65,30),
  t_float     float,
  t_double    double,
  t_bit1      bit(1),
  t_bit10     bit(10),
  t_bit64     bit(64),
  t_char      char(20) CHARACTER SET utf8mb4,
  t_varchar   varchar(255) CHARACTER SET utf8mb4,
  t_latin1    varchar(255) CHARACTER SET latin1,
  t_tinytext  tinytext CHARACTER SET utf8mb4,
  t_text      text CHARACTER SET utf8mb4,
  t_longtext  longtext CHARACTER SET utf8mb4,
  t_blob      blob,
  t_longblob  longblob,
  t_binary    binary(8),
  t_varbinary varbinary(255),
  t_date      date,
  t_datetime  datetime,
  t_datetime3 datetime(3),
  t_datetime6 datetime(6),
  t_timestamp  timestamp NULL,
  t_timestamp6 timestamp(6) NULL,
  t_time      time,
  t_time6     time(6),
  t_year      year,
  t_enum      enum('one','it''s two','three words','ñandú'),
  t_set       set('a','b b','ç','it''s'),
  t_json      json,
  PRIMARY KEY (id)
) DEFAULT CHARSET=utf8mb4`

const createOddKeys = `CREATE TABLE odd_keys (
  region varchar(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  day    date NOT NULL,
  number int NOT NULL,
  note   varchar(100) NULL,
  PRIMARY KEY (region, day, number)
) DEFAULT CHARSET=utf8mb4`

// CreateAllTypes makes two tables: all_types with a column of every common type,
// and odd_keys, whose composite key holds text with the characters that keys are
// joined and escaped with.
func CreateAllTypes(ctx context.Context, db *sql.DB) error {
	for _, statement := range []string{createAllTypes, createOddKeys} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%.24s: %w", statement, err)
		}
	}
	return nil
}

// A row of all_types names only what is not NULL.
type typesRow map[string]any

var edgeRows = []typesRow{
	{}, // all NULL but the key
	{ // the least of everything
		"t_tiny": -128, "t_tiny_u": 0, "t_bool": 0, "t_small": -32768, "t_small_u": 0, "t_medium": -8388608, "t_medium_u": 0,
		"t_int": -2147483648, "t_int_u": 0, "t_big": int64(-9223372036854775808), "t_big_u": 0,
		"t_decimal": "-99999999.99", "t_decimal_l": "-" + strings.Repeat("9", 35) + "." + strings.Repeat("9", 30),
		"t_float": "-3.402823e38", "t_double": "-1.7976931348623157e308", "t_bit1": []byte{0}, "t_bit10": []byte{0, 0}, "t_bit64": make([]byte, 8),
		"t_date": "1000-01-01", "t_datetime": "1000-01-01 00:00:00", "t_datetime3": "1000-01-01 00:00:00.000", "t_datetime6": "1000-01-01 00:00:00.000000",
		"t_timestamp": "1970-01-01 00:00:01", "t_timestamp6": "1970-01-01 00:00:01.000000",
		"t_time": "-838:59:59", "t_time6": "-838:59:59.000000", "t_year": 1901, "t_enum": "one", "t_set": "", "t_json": `{}`,
	},
	{ // the most of everything
		"t_tiny": 127, "t_tiny_u": 255, "t_bool": 1, "t_small": 32767, "t_small_u": 65535, "t_medium": 8388607, "t_medium_u": 16777215,
		"t_int": 2147483647, "t_int_u": uint32(4294967295), "t_big": int64(9223372036854775807), "t_big_u": "18446744073709551615",
		"t_decimal": "99999999.99", "t_decimal_l": strings.Repeat("9", 35) + "." + strings.Repeat("9", 30),
		"t_float": "3.402823e38", "t_double": "1.7976931348623157e308", "t_bit1": []byte{1}, "t_bit10": []byte{3, 255},
		"t_bit64":    []byte{255, 255, 255, 255, 255, 255, 255, 255},
		"t_date":     "9999-12-31",
		"t_datetime": "9999-12-31 23:59:59", "t_datetime3": "9999-12-31 23:59:59.999", "t_datetime6": "9999-12-31 23:59:59.999999",
		"t_timestamp": "2038-01-19 03:14:07", "t_timestamp6": "2038-01-19 03:14:07.999999",
		"t_time": "838:59:59", "t_time6": "838:59:59.000000", "t_year": 2155, "t_enum": "ñandú", "t_set": "a,b b,ç,it's",
		"t_json": `{"max": 18446744073709551615, "min": -9223372036854775808, "big": 1.5e300, "deep": {"a": [1, [2, [3, {"b": null}]]]}}`,
	},
	{ // empty texts
		"t_char": "", "t_varchar": "", "t_latin1": "", "t_tinytext": "", "t_text": "", "t_longtext": "",
		"t_blob": []byte{}, "t_longblob": []byte{}, "t_binary": []byte{}, "t_varbinary": []byte{}, "t_set": "", "t_json": `{"": ""}`,
		"t_float": "0", "t_double": "0", "t_decimal": "0", "t_decimal_l": "0", "t_year": 0, "t_time": "00:00:00", "t_time6": "00:00:00",
	},
	{ // text that needs care
		"t_char": "🎯 ende", "t_varchar": "“quotes” \"double\" 'single' \\ back / slash", "t_latin1": "café £ € ñ ß ÿ",
		"t_tinytext": "line\nbreak\r\n\ttab", "t_text": "control \x00\x01\x07\x1b\x1f\x7f end", "t_longtext": "👩‍👩‍👧 日本語 العربية \u2028\u2029\ufeff <script>&amp;",
		"t_blob": []byte("\x00\x01\xff'\"\\\n"), "t_longblob": []byte{0xc3, 0x28, 0xa0}, "t_binary": []byte("ab\x00cd"), "t_varbinary": []byte("v\x00\x00"),
		"t_enum": "it's two", "t_set": "b b,it's",
		"t_json": `{"text": "line\nbreak \"quoted\" \\ \u0001 🎯", "sp ace": true, "ünï": false, "null": null, "list": [], "object": {}}`,
	},
	{ // spaces and zero bytes at the end
		"t_char": "  both  ", "t_varchar": "  both  ", "t_latin1": "  both  ", "t_tinytext": "end  ", "t_text": " ", "t_longtext": "\n\n",
		"t_blob": []byte("end\x00\x00"), "t_binary": []byte("abc\x00\x00\x00\x00\x00"), "t_varbinary": []byte("end  \x00 "), "t_longblob": []byte{0},
	},
	{ // numbers that floats and scripts get wrong
		"t_big": int64(9007199254740993), "t_big_u": uint64(9223372036854775808), "t_decimal": "0.10", "t_decimal_l": "0.000000000000000000000000000001",
		"t_float": "0.1", "t_double": "0.1", "t_bit64": []byte{0, 32, 0, 0, 0, 0, 0, 1},
		"t_json": `{"i": 9007199254740993, "d": 0.1, "e": 1e-7, "neg": -0.5, "one": 1.0, "u": 9223372036854775808}`,
	},
	{"t_float": "16777216", "t_double": "4.9e-322", "t_decimal": "-0.01", "t_decimal_l": "-1"},
	{"t_float": "1.17549e-38", "t_double": "123456789012345680000", "t_decimal": "100.00", "t_decimal_l": "12345678901234567890.5"},
	{"t_float": "-2.5e-7", "t_double": "1e15", "t_json": `null`},
	{ // times: negative, longer than a day, fractions
		"t_time": "-00:00:01", "t_time6": "-00:00:00.000001", "t_datetime": "2026-03-29 02:30:00", "t_datetime3": "2026-03-29 02:30:00.120",
		"t_datetime6": "2026-03-29 02:30:00.000001", "t_timestamp": "2026-03-29 01:30:00", "t_timestamp6": "2026-10-25 00:30:00.100000", "t_date": "2024-02-29",
	},
	{"t_time": "25:00:00", "t_time6": "100:00:00.500000", "t_date": "1969-12-31", "t_datetime6": "1969-12-31 23:59:59.999999", "t_year": 1970},
	{"t_time": "-25:30:00", "t_time6": "-01:00:00.250000", "t_datetime3": "1582-10-10 12:00:00.001"},
}

// SeedAllTypes fills the tables of CreateAllTypes with the edges of every type
// and n random rows. The same seed gives the same rows. It returns the number of
// rows in all_types; their ids count from 1.
func SeedAllTypes(ctx context.Context, db *sql.DB, n int, seed uint64) (int, error) {
	rng := rand.New(rand.NewPCG(seed, 0))
	rows := append([]typesRow(nil), edgeRows...)
	for range n {
		rows = append(rows, randomTypes(rng))
	}
	for i, row := range rows {
		if err := insertTypes(ctx, db, uint64(i+1), row); err != nil {
			return i, err
		}
	}
	odd := newInsert(db, "odd_keys", "region", "day", "number", "note")
	for i, region := range []string{"", "plain", "a:b", "a%3Ab", "100%", "ünï – 🎯", `q"uo'te\`, "sp ace", "A", "a", "*?[x]", "{tag}"} {
		if err := odd.add(ctx, region, "2026-11-22", i-3, "note "+region); err != nil {
			return len(rows), err
		}
	}
	return len(rows), odd.flush(ctx)
}

// ChangeAllTypes gives every row of all_types the values of another row, inside
// one transaction, so that each column passes through the log in both images.
func ChangeAllTypes(ctx context.Context, db *sql.DB, seed uint64) error {
	var n int
	if err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM all_types").Scan(&n); err != nil {
		return fmt.Errorf("count all_types: %w", err)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "DELETE FROM all_types"); err != nil {
		return fmt.Errorf("empty all_types: %w", err)
	}
	for i := range n {
		row := edgeRows[(i+1)%len(edgeRows)]
		if i >= len(edgeRows) {
			row = randomTypes(rng)
		}
		if err := insertTypes(ctx, tx, uint64(i+1), row); err != nil {
			return err
		}
	}
	// An update in place as well: every other row takes the next row's values.
	for _, column := range typeColumns {
		query := fmt.Sprintf("UPDATE all_types a JOIN all_types b ON b.id = a.id + 1 SET a.%[1]s = b.%[1]s WHERE a.id %% 2 = 1", column)
		if _, err := tx.ExecContext(ctx, query); err != nil {
			return fmt.Errorf("update %s: %w", column, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// typeColumns are the columns of all_types but its key.
var typeColumns = []string{"t_tiny", "t_tiny_u", "t_bool", "t_small", "t_small_u", "t_medium", "t_medium_u", "t_int", "t_int_u",
	"t_big", "t_big_u", "t_decimal", "t_decimal_l", "t_float", "t_double", "t_bit1", "t_bit10", "t_bit64", "t_char", "t_varchar",
	"t_latin1", "t_tinytext", "t_text", "t_longtext", "t_blob", "t_longblob", "t_binary", "t_varbinary", "t_date", "t_datetime",
	"t_datetime3", "t_datetime6", "t_timestamp", "t_timestamp6", "t_time", "t_time6", "t_year", "t_enum", "t_set", "t_json"}

func insertTypes(ctx context.Context, to execer, id uint64, row typesRow) error {
	columns, args := []string{"id"}, []any{id}
	for _, c := range typeColumns {
		if v, ok := row[c]; ok {
			columns, args = append(columns, c), append(args, v)
		}
	}
	query := fmt.Sprintf("INSERT INTO all_types (%s) VALUES (?%s)", strings.Join(columns, ","), strings.Repeat(",?", len(columns)-1))
	if _, err := to.ExecContext(ctx, query, args...); err != nil {
		return fmt.Errorf("insert row %d into all_types: %w", id, err)
	}
	return nil
}

func randomTypes(rng *rand.Rand) typesRow {
	at := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rng.Int64N(50*365*24*3600*1e6)) * time.Microsecond)
	stamp := micros(at)
	bits := make([]byte, 8)
	for i := range bits {
		bits[i] = byte(rng.IntN(256))
	}
	sign := pick(rng, []string{"", "-"})
	time6 := fmt.Sprintf("%s%02d:%02d:%02d.%06d", sign, rng.IntN(838), rng.IntN(60), rng.IntN(60), rng.IntN(1e6))
	row := typesRow{
		"t_tiny": rng.IntN(256) - 128, "t_tiny_u": rng.IntN(256), "t_bool": rng.IntN(2),
		"t_small": rng.IntN(1<<16) - 1<<15, "t_small_u": rng.IntN(1 << 16), "t_medium": rng.IntN(1<<24) - 1<<23, "t_medium_u": rng.IntN(1 << 24),
		"t_int": int32(rng.Uint32()), "t_int_u": rng.Uint32(), "t_big": int64(rng.Uint64()), "t_big_u": fmt.Sprint(rng.Uint64()),
		"t_decimal": fmt.Sprintf("%s%d.%02d", sign, rng.IntN(1e8), rng.IntN(100)), "t_decimal_l": fmt.Sprintf("%s%d.%018d", sign, rng.Uint64(), rng.Uint64N(1e18)),
		"t_float": rng.NormFloat64() * 1e6, "t_double": rng.NormFloat64() * 1e12,
		"t_bit1": []byte{byte(rng.IntN(2))}, "t_bit10": []byte{byte(rng.IntN(4)), bits[0]}, "t_bit64": bits,
		"t_char": fmt.Sprintf("%x", bits), "t_varchar": pick(rng, twists), "t_latin1": "café " + pick(rng, limits[:3])[:1],
		"t_tinytext": pick(rng, tagNames), "t_text": pick(rng, twists), "t_longtext": strings.Repeat(pick(rng, twists), rng.IntN(100)),
		"t_blob": bits, "t_longblob": []byte(strings.Repeat(string(bits), rng.IntN(100))), "t_binary": bits, "t_varbinary": bits[:rng.IntN(9)],
		"t_date": stamp[:10], "t_datetime": stamp[:19], "t_datetime3": stamp[:23], "t_datetime6": stamp,
		"t_timestamp": stamp[:19], "t_timestamp6": stamp, "t_time": time6[:len(time6)-7], "t_time6": time6,
		"t_year": 1901 + rng.IntN(255), "t_enum": pick(rng, []string{"one", "it's two", "three words", "ñandú"}),
		"t_set": pick(rng, []string{"", "a", "a,ç", "b b,it's"}), "t_json": settingsJSON(rng),
	}
	for _, c := range typeColumns {
		if rng.IntN(8) == 0 {
			delete(row, c)
		}
	}
	return row
}

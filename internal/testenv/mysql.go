package testenv

import (
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Database creates an empty database with a name nobody else uses, as the
// administrator, drops it at the end of the test and returns the name.
func Database(t testing.TB, s Server) string {
	t.Helper()
	var random [6]byte
	rand.Read(random[:])
	name := "test_" + hex.EncodeToString(random[:])
	db := OpenMySQL(t, s, "")
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatalf("create database %s on %s: %v", name, s.Name, err)
	}
	// Cleanups run last first: this one while db is still open.
	t.Cleanup(func() {
		if _, err := db.Exec("DROP DATABASE IF EXISTS " + name); err != nil {
			t.Errorf("drop database %s on %s: %v", name, s.Name, err)
		}
	})
	return name
}

// OpenMySQL connects to a MySQL or MariaDB as the administrator, with database as
// the default one unless it is empty, and closes the pool at the end of the test.
// A call may hold several statements; times come back as text.
func OpenMySQL(t testing.TB, s Server, database string) *sql.DB {
	t.Helper()
	c := mysql.NewConfig()
	c.Net = "tcp"
	c.Addr = s.Addr
	c.User = AdminUser
	c.Passwd = AdminPassword
	c.DBName = database
	c.MultiStatements = true
	c.Timeout = time.Minute
	c.MaxAllowedPacket = 0 // ask the server
	connector, err := mysql.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	t.Cleanup(func() { db.Close() })
	if err := db.Ping(); err != nil {
		t.Fatalf("%s on %s does not let %s in: %v", s.Name, s.Addr, AdminUser, err)
	}
	return db
}

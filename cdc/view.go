package cdc

import "unsafe"

// View is b as a string, without a copy: b must not be changed while the string is used.
func View(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// viewed is s, which is a part of a View, as the bytes that it is a view of. What is
// appended to them goes elsewhere.
func viewed(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

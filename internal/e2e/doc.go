// Package e2e has the tests of the whole pipeline: the real binary between real
// servers, under load, with faults. Its judge is package oracle, which shares no
// code with the pipeline.
//
// Their servers are the package's own, and let nobody in without TLS, a certificate and a
// password; every pipeline does with the rights that docs/privileges.md gives it.
//
// They wait more than they work, so they run side by side (t.Parallel), each in a world
// of its own. A test that stops a shared server, or needs the whole machine, runs alone, before
// them.
package e2e

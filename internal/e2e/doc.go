// Package e2e has the tests of the whole pipeline: the real binary between real
// servers, under load, with faults. Its judge is package oracle, which shares no
// code with the pipeline.
package e2e

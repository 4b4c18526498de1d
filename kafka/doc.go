// Package kafka is the log between the source and the sinks, and the only
// package that knows a Kafka client.
//
// It promises three things that the client library's own writer and reader do
// not. What is published to a partition stands there in the order in which it
// was published and once, however often a request had to be repeated (Publisher).
// The saved position of the source is never ahead of what Kafka has acknowledged
// (ChangeLog). A consumer reads every record of its partitions from the committed
// offset on, and hands a partition over only when its work in flight is finished
// and committed; where records are gone it stops and says so, it never jumps
// (Client.Consume).
package kafka

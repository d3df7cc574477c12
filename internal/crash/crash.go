// Package crash names the moments at which a process may die by a power cut or kill -9 with something half done. In an ordinary build a
// Point is nothing. Built with the tag crashpoints, a process kills itself (SIGKILL) at the point that the environment names:
//
//	CROWD_CRASH=store.commit.before:3    the third time that it comes there
//
// Tests walk through every name in Points, so that a point which nobody passes is found.
package crash

// Points lists every point in the product, in the order of a job's way.
var Points = []string{
	"upload.part.after",   // broker: bytes of a blob are on disk, the upload isn't complete
	"upload.whole.before", // broker: complete and checked, not yet named by its digest
	"upload.whole.after",  // broker: named, not yet owned
	"order.before",        // broker: an order is checked, its transaction not begun
	"order.after",         // broker: durable, not answered
	"lease.after",         // broker: the attempt's row is durable, the host doesn't know
	"cache.part.after",    // host: a download's bytes are on disk, not yet named by their digest
	"cache.whole.after",   // host: named
	"outbox.before",       // host: computed, not on disk
	"outbox.after",        // host: on disk, not told
	"outbox.said",         // host: acknowledged, its file still there
	"outcome.before",      // broker: an uploaded outcome is written, not named
	"outcome.after",       // broker: named, not answered
	"state.before",        // broker: a checkpoint is on disk, its row isn't
	"state.after",         // broker: its row is durable, the older one's file still there
	"store.begin",         // store: a transaction has begun
	"store.body.before",   // store: bodies are written, not synced
	"store.body.after",    // store: bodies are synced, the transaction isn't committed
	"store.commit.after",  // store: committed, nobody told
	"verdict.before",      // broker: a verdict is decided in memory
	"verdict.after",       // broker: durable, nobody told
	"answer.before",       // broker: a report's answer is about to be said
	"job.end.after",       // broker: a job's end is durable
	"save.before",         // broker: progress is about to be saved
	"migrate.before",      // store: a schema is about to be brought up to date
	"migrate.after",       // store: it is
	"backup.part",         // backup: half written under another name
	"backup.whole",        // backup: complete, not named
	"restore.part",        // restore: half unpacked
	"restore.whole",       // restore: unpacked, the incarnation not raised
	"archive.before",      // broker: an old job is written to the archive, its rows are there
	"archive.after",       // broker: its rows are gone, its files still there
}

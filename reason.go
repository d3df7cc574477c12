package crowd

import "strings"

// Reason is the typed why of a refusal, a close, a quarantine: "party.what". The empty Reason is none. Every reason that
// the system gives stands in Reasons; a test finds those that don't.
type Reason string

// Party is who caused it: owner, host, customer, guest, network, broker or policy.
func (r Reason) Party() string { p, _, _ := strings.Cut(string(r), "."); return p }

// The registry's codes.
const (
	OwnerPaused     Reason = "owner.paused"
	OwnerLeft       Reason = "owner.left"
	OwnerSchedule   Reason = "owner.schedule"
	OwnerStopped    Reason = "owner.stopped"
	OwnerPolicy     Reason = "owner.policy"
	OwnerSleep      Reason = "owner.sleep"
	HostLost        Reason = "host.lost"
	HostSmall       Reason = "host.small"
	HostBusy        Reason = "host.busy"
	HostCheated     Reason = "host.cheated"
	HostCloned      Reason = "host.cloned"
	HostFailed      Reason = "host.failed"
	HostOffline     Reason = "host.offline"
	HostDevice      Reason = "host.device"
	HostOld         Reason = "host.old"
	HostLineage     Reason = "host.lineage"
	HostGarbage     Reason = "host.garbage"
	CustomerPlace   Reason = "customer.place"
	CustomerProof   Reason = "customer.evidence"
	CustomerTrust   Reason = "customer.trust"
	CustomerPrice   Reason = "customer.price"
	CustomerCredit  Reason = "customer.no_credit"
	CustomerCap     Reason = "customer.cap"
	CustomerKey     Reason = "customer.key"
	CustomerScope   Reason = "customer.scope"
	CustomerCancel  Reason = "customer.cancel"
	CustomerDead    Reason = "customer.deadline"
	CustomerQuorum  Reason = "customer.quorum"
	CustomerQuota   Reason = "customer.quota"
	CustomerFile    Reason = "customer.file"
	CustomerSelf    Reason = "customer.own_host"
	GuestMemory     Reason = "guest.memory"
	GuestTime       Reason = "guest.time"
	GuestOutput     Reason = "guest.output"
	GuestTrap       Reason = "guest.trap"
	GuestFuel       Reason = "guest.fuel"
	GuestExit       Reason = "guest.exit"
	NetworkBroker   Reason = "network.broker"
	NetworkHost     Reason = "network.host"
	BrokerDrained   Reason = "broker.drained"
	BrokerRestarted Reason = "broker.restarted"
	BrokerRate      Reason = "broker.rate"
	BrokerToken     Reason = "broker.token"
	BrokerKey       Reason = "broker.key"
	BrokerNotBuilt  Reason = "broker.not_built"
	BrokerLosses    Reason = "broker.losses"
	BrokerRestored  Reason = "broker.restored"
	BrokerOld       Reason = "broker.old"
	BrokerDisk      Reason = "broker.disk"
	PolicyForbid    Reason = "policy.forbid"
)

// Reasons says in one sentence what each code means and what its way out is; `crowd why CODE` prints it.
var Reasons = map[Reason]struct{ Means, WayOut string }{
	OwnerPaused:     {"the owner paused this machine", "wait, or let another machine take it; nothing of yours is lost"},
	OwnerLeft:       {"the owner took this machine out of the crowd", "its work goes elsewhere by itself"},
	OwnerSchedule:   {"outside the hours in which the owner lends this machine", "wait for the owner's hours"},
	OwnerStopped:    {"the owner stopped the agent", "its work goes elsewhere by itself"},
	OwnerPolicy:     {"the owner's terms don't allow this kind of work", "other owners may"},
	OwnerSleep:      {"the machine went to sleep", "its work goes elsewhere by itself; nothing of yours is lost"},
	HostLost:        {"the machine went silent without a word", "its work goes elsewhere by itself; nobody is blamed"},
	HostSmall:       {"the machine has too little memory or disk for this", "ask for less, or wait for a larger machine"},
	HostBusy:        {"the machine works on other orders", "wait, or raise the price"},
	HostCheated:     {"the machine gave an answer that hosts of other owners proved wrong", "for its owner: speak with the broker's operator"},
	HostCloned:      {"two machines use one key", "for its owner: join each machine by its own link"},
	HostFailed:      {"the machine couldn't run this, for a reason of its own", "it is tried elsewhere by itself"},
	HostOffline:     {"the machine isn't connected now", "wait until its owner is back"},
	HostDevice:      {"the order wants another sort of machine", "widen devices in the file"},
	HostOld:         {"the machine's agent is older than this order needs", "for its owner: update the agent"},
	HostLineage:     {"its answer went on from other machines' checkpoints and was wrong", "it is done again from the start; nobody is blamed"},
	HostGarbage:     {"the machine said things that make no sense, again and again", "for its owner: update the agent or join again; it is let in again by itself after a while"},
	CustomerPlace:   {"the machine isn't where the order says it must be", "widen place, or wait for a machine there"},
	CustomerProof:   {"the machine's place isn't proven as well as the order asks", "lower place.evidence"},
	CustomerTrust:   {"the machine doesn't reach the order's tier of trust", "lower trust, after reading what that tier does not protect from"},
	CustomerPrice:   {"the order's price is below what the work costs", "raise price.max"},
	CustomerCredit:  {"the account has too little free credit", "ask the operator for credit, or lower price.max"},
	CustomerCap:     {"the key's spending cap is reached", "use another key, or make one with a higher cap"},
	CustomerKey:     {"the broker doesn't know this API key, or it has expired", "crowd account login"},
	CustomerScope:   {"the API key may not do this", "make a key with that scope: crowd account keys create --scope"},
	CustomerCancel:  {"the customer cancelled it", "order it again"},
	CustomerDead:    {"the order's deadline passed", "raise deadline, or split the job"},
	CustomerQuorum:  {"the crowd has too few different owners for this quorum", "lower verify.quorum, or wait for more owners"},
	CustomerQuota:   {"the account has too many of these open", "wait for some to end, or cancel some"},
	CustomerFile:    {"the file or request says something that can't be", "mend what the message names"},
	CustomerSelf:    {"a machine never checks the work of its own owner", "nothing to do: other owners take it"},
	GuestMemory:     {"the program wanted more memory than the order gives a unit", "raise resources.memory"},
	GuestTime:       {"the unit took longer than the order gives it", "raise resources.time"},
	GuestOutput:     {"the unit wrote more than the order lets it", "raise outputs.max"},
	GuestTrap:       {"the program crashed (a wasm trap)", "crowd job logs shows its stderr"},
	GuestFuel:       {"the unit used up its fuel", "raise resources.fuel"},
	GuestExit:       {"the program ended with an exit code other than 0", "crowd job logs shows its stderr"},
	NetworkBroker:   {"the broker doesn't answer", "nothing was changed, the same command again is safe"},
	NetworkHost:     {"the machine's connection broke", "it is tried elsewhere by itself"},
	BrokerDrained:   {"the broker takes no new work now", "try again later"},
	BrokerRestarted: {"the broker was restarted", "nothing to do: work goes on"},
	BrokerRate:      {"too many requests at once", "wait as long as Retry-After says"},
	BrokerToken:     {"the join link is used up, expired or unknown", "ask for a new one: crowd host token"},
	BrokerKey:       {"the broker's key isn't the one that was pinned", "if the operator says that it changed: crowd account login"},
	BrokerNotBuilt:  {"this version can't do that yet", "see the README for what works"},
	BrokerLosses:    {"many machines in a row were lost or frozen while working on it", "it goes on by itself when the crowd is steadier"},
	BrokerRestored:  {"the broker was restored from a backup", "what was told after that backup is gone; order again what is missing"},
	BrokerOld:       {"the broker's store is older than what this machine has seen of it", "for the operator: a backup goes back by crowd broker restore, never by copying files"},
	BrokerDisk:      {"the broker's disk is full", "for the operator: free some space; work goes on by itself"},
	PolicyForbid:    {"a policy forbids it", "crowd policy explain"},
}

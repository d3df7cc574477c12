package client

// InitJobFile is what `crowd job init` writes: a job.yaml that explains itself. But for the program that it names, it is good as it stands.
func InitJobFile() string {
	return `# A job: one program, many units. crowd quote job.yaml says what it may cost, crowd run job.yaml orders it.
kind: job
name: my-job              # a-z 0-9 -; jobs add -2, -3 by themselves
program: main.wasm        # a path from this file's folder, or the b3:… of something uploaded
args: [--unit, "{unit}", --of, "{units}"]
# Templates in args and env: {unit} {units} {seed} {job}, for files {input} {stem}, and grid names; {{ is a brace.
# env: {SEED: "{seed}"}
# inputs: [data.bin, {from: ../bank.bin, as: bank.bin}]   # read-only under /in

units: {count: 100}       # exactly one of these three
#      {files: "raw/*.jpg"}                             a unit per file: {input} its path, {stem} its bare name
#      {grid: {mass: [1.4, 30], spin: 0..0.9/0.1}}      a unit per combination: {mass}, {spin}
chunk: auto               # units per lease; auto aims at 30 s of work
resources: {cpu: 1, memory: 256MiB, disk: 1GiB, time: 10m}   # of a unit; beyond: guest.memory …
verify: {quorum: 2}       # hosts of that many unrelated owners must agree | none
retries: 7                # of a unit that failed by itself; lost and frozen hosts don't count
# checkpoint: 30s         # what a unit writes to /state goes with it when its host is lost
# outputs: {keep: ["*.json"], max: 16MiB}   # of /out; kept 30 days. default: all

price: {max: 50cr}        # of the whole order; what isn't used comes back
# deadline: 6h            # from the order, or a time; then cancel and return the rest
# place: {in: [DE, FR], evidence: not-refuted}   # hard, for life, fails closed; or place: DE
# devices: [desktop, laptop, server]             # default: any
# labels: {team: gw}
`
}

#!/usr/bin/env bash
# Trains an experiment on a Cloud TPU slice, from renting to deleting it; docs/train.md explains it.
#
#   scripts/launch_tpu.sh run --name=coco --zone=europe-west4-a \
#       --gin_file=gin/experiments/coco_resnet50.gin \
#       --data_dir=gs://BUCKET/coco/records --run_dir=gs://BUCKET/runs/coco
#   scripts/launch_tpu.sh delete --name=coco --zone=europe-west4-a
#
# run    rents the slice and a VM for the evaluator, installs, trains, follows the logs, rents anew
#        and goes on after a preemption, and deletes everything at the end. Ctrl-C while training
#        runs leaves it running; the same command follows it again.
# delete deletes what an earlier run left.
#
#   --name, --zone         of the slice; the VM of the evaluator is called NAME-eval
#   --gin_file, --gin      the experiment, and a binding that overrides it (as often as you like)
#   --data_dir, --run_dir  records and run folder, on gs:// in the region of the zone
#   --spot                 cheaper, and may be preempted
#   --accelerator          v3-32 if not given; more than one host
#   --evaluator            machine type of the evaluator's VM, n2-standard-16 if not given; one
#                          with a GPU, as g2-standard-8, is faster; none for no evaluator
#   --tensorflow           2.18.0 if not given: of the client, the workers and the evaluator
#   --runtime              software version of the slice, tpu-vm-tf-2.18.0-pod-se if not given
#   --dry-run              print each command and run none
set -euo pipefail
cd "$(dirname "$0")/.."

tensorflow=2.18.0
runtime=tpu-vm-tf-2.18.0-pod-se
accelerator=v3-32
evaluator=n2-standard-16
name="" zone="" gin_file="" data_dir="" run_dir="" spot="" dry_run=""
bindings=()

poll=${KMAX_POLL_SECONDS:-30}        # between two looks at a machine
settled=${KMAX_SETTLED_SECONDS:-600} # a training that ends sooner is not started again
patience=20                          # looks in a row that a machine may leave unanswered

temporary=$(mktemp -d)
exec 3>&1 # for the commands of a dry run, also from within $(...)
bundle="" # the code, packed
begun=()  # what may exist because of us: slice, evaluator
state=""  # of a job: running, finished, failed, stopped SECONDS, absent, unknown
working="" # set while a job runs: an interruption then leaves the machines alone
leave=""   # set when they are to be left alone
exit_status=0
dry_slice=absent dry_evaluator=absent dry_job=absent # what a dry run takes to be there

fail() {
    echo "error: $*" >&2
    exit 1
}

say() { echo "[$(date +%T)] $*"; }

# The words as one line for bash.
quoted() {
    local word line=""
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        line+="$word "
    done
    echo "${line% }"
}

call() {
    if [ "$dry_run" ]; then quoted "$@" >&3; else "$@"; fi
}

# retry TIMES COMMAND: machines refuse ssh in their first minutes, downloads break.
retry() {
    local attempt
    for ((attempt = 1; attempt < $1; attempt++)); do
        if "${@:2}"; then return 0; fi
        say "again in $poll s"
        sleep "$poll"
    done
    "${@:2}"
}

# ---- The two machines ----

# What a describe command prints; absent if there is nothing, unknown if there was no answer.
described() {
    local answer=$1 text
    shift
    if [ "$dry_run" ]; then
        quoted "$@" >&3
        echo "$answer"
    elif text=$("$@" 2> "$temporary/stderr"); then
        echo "$text"
    elif grep -qi "not.found" "$temporary/stderr"; then
        echo absent
    else
        cat "$temporary/stderr" >&2
        echo unknown
    fi
}

# ACTIVE when it can be used. An active request may hold a node that is gone.
slice_state() {
    local request node
    request=$(described "$dry_slice" gcloud compute tpus queued-resources describe "$name" \
        "${where[@]}" --format="value(state.state)")
    if [ "$request" = ACTIVE ]; then
        node=$(described READY gcloud compute tpus tpu-vm describe "$name" "${where[@]}" \
            --format="value(state)")
        [ "$node" = READY ] || request=$node
    fi
    echo "$request"
}

evaluator_state() {
    described "$dry_evaluator" gcloud compute instances describe "$name-eval" "${where[@]}" \
        --format="value(status)"
}

create_slice() {
    pack_code
    say "requesting $accelerator as $name in $zone"
    begun+=(slice)
    call gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
        --accelerator-type="$accelerator" --runtime-version="$runtime" \
        --scopes=https://www.googleapis.com/auth/cloud-platform ${spot:+--spot} &&
        dry_slice=ACTIVE
}

create_evaluator() {
    say "creating $evaluator as $name-eval in $zone"
    begun+=(evaluator)
    # A VM with a GPU cannot be moved during maintenance.
    call gcloud compute instances create "$name-eval" "${where[@]}" --machine-type="$evaluator" \
        --image-family=ubuntu-2204-lts --image-project=ubuntu-os-cloud --boot-disk-size=100GB \
        --maintenance-policy=TERMINATE --scopes=cloud-platform &&
        dry_evaluator=RUNNING
}

# delete MACHINE HOW: calls its deletion, or prints it.
delete() {
    case $1 in
        slice) "$2" gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force ;;
        evaluator) "$2" gcloud compute instances delete "$name-eval" "${where[@]}" ;;
    esac
}

# Deletes a machine; if it may still be there, says so, and how to delete it.
remove() {
    local attempt
    for attempt in 1 2 3; do
        say "deleting the $1"
        if delete "$1" call; then printf -v "dry_$1" absent; else sleep "$poll"; fi
        if [ "$("${1}_state")" = absent ]; then return 0; fi
    done
    warn_of "$1"
    return 1
}

warn_of() {
    echo "The $1 may STILL RUN, AND COST. Delete it with:" >&2
    echo "    $(delete "$1" quoted)" >&2
}

# Runs at every exit. What runs is deleted, or named.
finish() {
    local status=$? machine
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    if [ "$leave" ]; then
        echo "What runs goes on without this program; the same command follows it again."
    fi
    for machine in "${begun[@]}"; do
        if [ "$("${machine}_state")" = absent ]; then continue; fi
        if [ "$leave" ]; then warn_of "$machine"; else remove "$machine" || status=1; fi
    done
    rm -rf "$temporary"
    exit "$status"
}

interrupt() {
    leave=$working
    exit 130
}

# ---- Jobs: training on worker 0 of the slice, evaluation on its VM ----

# on JOB COMMAND [WORKER]
on() {
    local patient=(--ssh-flag="-o ConnectTimeout=30" --ssh-flag="-o ServerAliveInterval=15")
    case $1 in
        train) call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="${3:-0}" \
            "${patient[@]}" --command="$2" ;;
        evaluate) call gcloud compute ssh "$name-eval" "${where[@]}" "${patient[@]}" \
            --command="$2" ;;
    esac
}

put() {
    case $1 in
        train) call gcloud compute tpus tpu-vm scp "$2" "$name:" "${where[@]}" --worker=0 ;;
        evaluate) call gcloud compute scp "$2" "$name-eval:" "${where[@]}" ;;
    esac
}

# The committed code, in one file: what ran can be told from its revision.
pack_code() {
    if [ "$bundle" ]; then return; fi
    if [ ! "$dry_run" ] && [ -n "$(git status --porcelain)" ]; then
        git status --short >&2
        fail "the above is not committed and would not be sent; commit it"
    fi
    bundle=$temporary/kmax_tf.bundle
    call git bundle create --quiet "$bundle" HEAD
}

# The code and what it needs, with the stock TensorFlow.
install() {
    pack_code
    retry 10 on "$1" true &&
        put "$1" "$bundle" &&
        retry 2 on "$1" "set -e
sudo apt-get -o DPkg::Lock::Timeout=300 update -q
sudo apt-get -o DPkg::Lock::Timeout=300 install -q -y git python3-venv
rm -rf kmax_tf
git -c advice.detachedHead=false clone --quiet kmax_tf.bundle kmax_tf
kmax_tf/scripts/setup_venv $minor"
}

# Starts a job that outlives the connection.
start() {
    local job=$1 command
    shift
    command=$(quoted "cd kmax_tf && $(quoted "$@") >> ~/$job.log 2>&1; echo \$? > ~/$job.exit")
    say "starting: $(quoted "${@:2}")"
    on "$job" "rm -f $job.exit
setsid nohup bash -c $command < /dev/null > /dev/null 2>&1 & echo \$! > $job.pid" &&
        dry_job=finished
}

# What a machine is asked about a job: how it is (stopped: after how many seconds), and its new log.
question() {
    cat << END
if grep -qsa scripts/$1.py "/proc/\$(cat $1.pid 2> /dev/null)/cmdline"; then
    echo running
elif grep -qsx 0 $1.exit; then
    echo finished
elif tail -n 1 $1.log 2> /dev/null | tr '\r' '\n' | tail -n 1 | grep -q '^error:'; then
    echo failed
elif [ -e $1.pid ]; then
    end=\$(stat -c %Y $1.exit 2> /dev/null || date +%s)
    echo stopped \$((end - \$(stat -c %Y $1.pid)))
else
    echo absent
fi
if [ -e $1.log ]; then
    seen=\$(cat $1.seen 2> /dev/null || echo 0)
    size=\$(stat -c %s $1.log)
    tail -c +\$((seen + 1)) $1.log | head -c \$((size - seen)) | tr '\r' '\n'
    echo \$size > $1.seen
fi
END
}

# Sets state to that of a job, and prints what is new in its log.
follow() {
    local job=$1 text
    text=$(on "$job" "$(question "$job")") || text=unknown
    if [ "$dry_run" ]; then text=$dry_job; fi
    state=${text%%$'\n'*}
    if [[ $text == *$'\n'* ]]; then sed -n "s/^..*/$job: &/p" <<< "${text#*$'\n'}"; fi
}

# ---- Training ----

rent_slice() {
    local now before="" missed=0
    working=""
    while
        now=$(slice_state)
        [ "$now" != ACTIVE ]
    do
        if [ "$now" != "$before" ]; then say "slice $name: $now"; fi
        before=$now
        case $now in
            absent) create_slice ;;
            unknown)
                if ((++missed > patience)); then
                    warn_of slice
                    fail "Google Cloud does not say what $name is doing"
                fi
                ;;
            FAILED)
                begun+=(slice)
                gcloud compute tpus queued-resources describe "$name" "${where[@]}" >&2 || true
                fail "the request for $accelerator failed; look at quota, zone and --runtime (the" \
                    "versions: gcloud compute tpus versions list --zone=$zone)"
                ;;
            SUSPENDED | PREEMPTED | TERMINATED | STOPPED)
                begun+=(slice)
                say "slice $name was preempted"
                remove slice || fail "the preempted slice cannot be deleted"
                ;;
        esac
        if [ ! "$dry_run" ]; then sleep "$poll"; fi
    done
    if [[ " ${begun[*]} " != *" slice "* ]]; then begun+=(slice); fi
}

# The workers serve with the TensorFlow of the client: their container is named in a service file.
use_version_on_workers() {
    local worker unit=/etc/systemd/system/tpu-runtime.service
    local tag="grpc_tpu_worker:tf-$tensorflow-$api"
    for ((worker = 0; worker < hosts; worker++)); do
        say "worker $worker serves with $tag"
        retry 10 on train "set -e
if ! grep -q '$tag\"' $unit; then
    sudo sed -i -E 's#(TF_DOCKER_URL=[^\"]*/)[^/\":]*:[^\"]*#\\1$tag#' $unit
    sudo systemctl daemon-reload
    sudo systemctl restart tpu-runtime
fi
grep -q '$tag\"' $unit" "$worker"
    done
}

# The TPU wheel comes last, for what requires tensorflow would pull the stock wheel over it.
set_up_slice() {
    use_version_on_workers
    say "installing on worker 0"
    install train
    retry 2 on train "set -e
cd kmax_tf
$python -m pip install --quiet $(quoted "${pins[@]}") \\
    --find-links=https://storage.googleapis.com/libtpu-tf-releases/index.html
$python -m pip install --quiet --force-reinstall --no-deps tensorflow-tpu==$tensorflow"
    on train "cd kmax_tf && $(quoted "${client[@]}" scripts/doctor.py "${experiment[@]}" \
        --run_dir="$run_dir" --device="tpu:$name")"
}

start_evaluator() {
    local now
    now=$(evaluator_state)
    if [ "$now" = absent ]; then create_evaluator || return 1; fi
    if [[ " ${begun[*]} " != *" evaluator "* ]]; then begun+=(evaluator); fi
    if [ "$now" = RUNNING ]; then
        follow evaluate
        if [[ $state == running || $state == finished ]]; then return 0; fi
    fi
    say "installing on $name-eval"
    install evaluate || return 1
    if [[ $evaluator =~ ^(g2|a2|a3)- ]]; then
        on evaluate "set -e
sudo apt-get -o DPkg::Lock::Timeout=300 install -q -y ubuntu-drivers-common
sudo ubuntu-drivers install --gpgpu
sudo modprobe nvidia
cd kmax_tf
$python -m pip install --quiet 'tensorflow[and-cuda]==$minor.*'" || return 1
    fi
    start evaluate "$python" scripts/evaluate.py --run_dir="$run_dir" --order=newest --wait=86400
}

# Returns when training is done or has to be started again.
watch_training() {
    local missed=0 slice
    while true; do
        follow train
        case $state in
            running) missed=0 ;;
            finished) return ;;
            failed) fail "training ended with the error above; the run folder has what it saved" ;;
            unknown) ((++missed)) ;;
        esac
        if [ "$state" != running ]; then
            sleep "$poll"
            slice=$(slice_state)
            case $slice in
                ACTIVE | unknown) ;;
                *)
                    say "slice $name: $slice; training goes on from its newest checkpoint"
                    return
                    ;;
            esac
        fi
        if [[ $state == absent || $state == stopped* ]]; then
            if ((${state#* } < settled)); then
                fail "training ended ${state#* } s after its start; its last lines are above"
            fi
            say "training stopped; it goes on from its newest checkpoint"
            return
        fi
        if ((missed > patience)); then
            leave=1
            fail "worker 0 does not answer"
        fi
        sleep "$poll"
        if [ "$evaluator" != none ]; then (follow evaluate) || true; fi
    done
}

train() {
    while [ "$state" != finished ]; do
        rent_slice
        follow train
        if [[ $state == absent || $state == failed || $state == unknown ]]; then
            set_up_slice
        fi
        if [[ $state != running && $state != finished ]]; then
            start train "${client[@]}" scripts/train.py "${experiment[@]}" \
                --run_dir="$run_dir" --device="tpu:$name"
        fi
        working=1
        if [ "$evaluator" != none ] && ! start_evaluator; then
            say "the evaluator did not start; training goes on without it"
            remove evaluator || true
            evaluator=none
            exit_status=1
        fi
        watch_training
    done
}

wait_for_evaluator() {
    local missed=0
    follow evaluate
    while [[ $state == running || $state == unknown ]]; do
        if [ "$state" = running ]; then missed=0; else ((++missed)); fi
        if ((missed > patience)); then fail "the evaluator does not answer"; fi
        sleep "$poll"
        follow evaluate
    done
    if [ "$state" != finished ]; then
        fail "the evaluator ended with the error above; it can run anywhere:" \
            "scripts/evaluate.py --run_dir=$run_dir"
    fi
}

# ---- What the user asked for ----

parse() {
    local word
    for word; do
        case $word in
            --name=*) name=${word#*=} ;;
            --zone=*) zone=${word#*=} ;;
            --gin_file=*) gin_file=${word#*=} ;;
            --gin=*) bindings+=("${word#*=}") ;;
            --data_dir=*) data_dir=${word#*=} ;;
            --run_dir=*) run_dir=${word#*=} ;;
            --accelerator=*) accelerator=${word#*=} ;;
            --evaluator=*) evaluator=${word#*=} ;;
            --tensorflow=*) tensorflow=${word#*=} ;;
            --runtime=*) runtime=${word#*=} ;;
            --spot) spot=1 ;;
            --dry-run) dry_run=1 ;;
            *) fail "$word is no flag; scripts/launch_tpu.sh --help lists them" ;;
        esac
    done
    [[ $name =~ ^[a-z][-a-z0-9]{0,50}$ ]] || fail "--name=$name: give small letters and digits"
    [[ $zone =~ ^[a-z]+-[a-z0-9]+-[a-z]$ ]] || fail "--zone=$zone: give a zone, as europe-west4-a"
}

# Whatever a worker's server reads or writes is on gs://: it has no file of ours.
check() {
    local flag
    for flag in data_dir run_dir; do
        [[ ${!flag} == gs://?*/?* ]] ||
            fail "--$flag=${!flag}: the workers reach only gs://BUCKET/FOLDER; copy it there"
    done
    [[ $gin_file == gs://* ]] || git cat-file -e "HEAD:${gin_file#./}" 2> /dev/null ||
        fail "--gin_file=$gin_file: no file that is committed here"
    ! { cat "$gin_file" 2> /dev/null; printf '%s\n' "${bindings[@]}"; } |
        grep "initial_checkpoint *=" | grep -v "gs://" >&2 ||
        fail "the checkpoint above is not on gs://, where the workers read it; copy it there"
    [[ $accelerator =~ ^v[234]-[0-9]+$ ]] || fail "--accelerator=$accelerator: give one as v3-32"
    hosts=$((${accelerator#*-} / 8))
    ((hosts > 1)) || fail "--accelerator=$accelerator has one host; docs/train.md, 'One host'"
    case $tensorflow in # what the wheel asks for and the stock one does not
        2.18.0) pins=("libtpu==2.18.0" "ml-dtypes<0.5") ;;
        2.19.1) pins=("libtpu==0.0.10") ;;
        2.20.0) pins=("libtpu==0.0.14") ;;
        *) fail "--tensorflow=$tensorflow is none of 2.18.0, 2.19.1, 2.20.0" ;;
    esac
    minor=${tensorflow%.*}
    python=.venv-$minor/bin/python
    if [ "$minor" = 2.20 ]; then python=.venv/bin/python; fi
    api=se
    if [[ $runtime == *-pjrt* ]]; then api=pjrt; fi
}

# Before anything costs: is there a project, are the records there, is the bucket near?
check_cloud() {
    local bucket location
    project=PROJECT
    if [ ! "$dry_run" ]; then
        command -v gcloud > /dev/null || fail "gcloud: not installed, cloud.google.com/sdk"
        project=$(gcloud config get-value project 2> /dev/null) || true
        [ "$project" ] || fail "no project; gcloud config set project PROJECT"
    fi
    where=(--zone="$zone" --project="$project" --quiet)
    if [ "$command_name" = delete ]; then return; fi
    call gcloud storage ls "$data_dir" > "$temporary/listing" || fail "$data_dir: no such records"
    bucket=gs://$(cut -d / -f 3 <<< "$run_dir")
    location=$(call gcloud storage buckets describe "$bucket" --format="value(location)") ||
        fail "$bucket: no such bucket; docs/train.md, 'Bucket, rights, data'"
    if [ "${location,,}" != "${zone%-*}" ] && [ ! "$dry_run" ]; then
        say "warning: $bucket is in $location, the slice in ${zone%-*}: reading costs"
    fi
}

announce() {
    echo "Rents, until it is deleted:"
    echo "    $accelerator slice $name in $zone${spot:+, spot}:" \
        "hours x $((${accelerator#*-} / 2)) chips x price (cloud.google.com/tpu/pricing)"
    if [ "$evaluator" != none ]; then
        echo "    $evaluator VM $name-eval: hours x price (cloud.google.com/compute/all-pricing)"
    fi
}

run() {
    check
    check_cloud
    experiment=(--gin_file="$gin_file" --gin="experiment.Experiment.data_dir = \"$data_dir\"")
    for binding in "${bindings[@]}"; do experiment+=(--gin="$binding"); done
    client=(env TPU_NAME="$name" TPU_LOAD_LIBRARY=0 TF_USE_LEGACY_KERAS=1 "$python")
    announce
    train
    working=""
    remove slice || exit_status=1
    if [ "$evaluator" != none ]; then
        working=1
        wait_for_evaluator
        working=""
    fi
    say "done: $run_dir"
}

command_name=${1:-}
trap finish EXIT
trap interrupt INT TERM HUP
case $command_name in
    run)
        parse "${@:2}"
        run
        ;;
    delete)
        parse "${@:2}"
        check_cloud
        dry_slice=ACTIVE dry_evaluator=RUNNING
        begun=(slice evaluator)
        ;;
    *)
        sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0"
        [ "$command_name" = --help ] || exit_status=1
        ;;
esac
exit "$exit_status"

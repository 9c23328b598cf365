/* The protocol between program, agent, daemon and kernel, for one page of one client.
 * docs/PROTOCOL.md tells it in words and says what of it is not in here. check.py runs it.
 *
 * What is checked: whoever reads the page sees what was last written, or zero after a discard; the
 * layout lock has one holder; and when nobody can do anything more, no thread of the program waits
 * (every process then stands at an `end` label, or spin reports an invalid end state).
 *
 * Bounds: two places where the page can be, two threads, one page a command, an inbox of two
 * events, CRASHES deaths of the daemon. The program, the evictor and the writes have no bound: a
 * page's contents are not numbers but what matters of them (below), an epoch is whether it is still
 * the one that the command was planned against.
 *
 * Each macro of check.py takes one rule out: -DNO_EPOCH, -DNO_LOCK, ... The model must fail then.
 */
#ifndef CRASHES
#define CRASHES 2
#endif

/* Contents of a page, or of a copy of it. A write makes every copy of what was there OLD. */
#define ZERO 0
#define CUR 1  /* what was written last */
#define OLD 2  /* what was there before: nobody may ever see it again */
#define GONE 3 /* nothing: not mapped, freed, emptied; who copies it gets bytes of somebody else */

/* Page-map entries. E_OBJ + id: in the pool. */
#define E_NONE 0
#define E_OUT 1
#define E_WANTED 2 /* OUT, and the reader's */
#define E_OBJ 3

/* Who holds the layout lock. */
#define FREE 0
#define DAEMON 1
#define AGENT 2

/* A command is the daemon's but while it is posted. */
#define IDLE 0
#define POSTED 1
#define DONE 2

/* Events, of the place `at`. */
#define NOTHING 0
#define REMOVE 1 /* comes before the pages are dropped */
#define UNMAP 2  /* comes after something new has been mapped where the page was */
#define REMAP 3  /* comes after the page has moved to the other place */
#define REMAP_CLEARED 4 /* half applied: what was noted of the target has been let go */

#define OK 0
#define EAGAIN 1
#define ENOENT 2
#define EEXIST 3

/* -- the kernel's: outlives the daemon */
bit here = 0;           /* where the page is mapped */
byte mem = GONE;        /* what is there; GONE: the next touch is a fault */
#ifdef REGISTRATION
bool registered = false; /* a missing page that is not is filled by the kernel, with zeros */
bool mapped = true;
#else
#define registered true
#endif
byte queued = NOTHING;  /* an event that nobody has read */
bit queued_at = 0;
bool changing = false;  /* from the change until its thread has come back, with the event read */
byte fault[2] = 0;      /* of each thread: 0 none, 1 to be read, 2 read and waiting */

/* -- the program's */
byte expected = ZERO;
bool discarding = false; /* the event is out, the pages are not dropped yet: both may be seen */
bool in_call = false;    /* in madvise */
bool touching = false;   /* the second thread is in the middle of an access */

/* -- the mailbox, transfer area and staging: shared with the agent, outlive the daemon */
byte layout = FREE;
byte command = IDLE;
bit command_at = 0;
bool epoch_same = false; /* the epoch is still the command's */
bool result_moved = false;
byte staging = GONE;
byte transfer = GONE;

/* -- the state memfds: outlive the daemon */
byte entry[2] = E_NONE;
byte object[2] = GONE;
byte refs[2] = 0;
byte inbox[2] = NOTHING;
bit inbox_at[2] = 0;
bool quarantine[2] = false;
#ifdef REGISTRATION
bool wish = false;  /* the evictor's, dies with the daemon: something is to be unregistered */
bool noted = false; /* what is being unregistered */
bit noted_at = 0;
#endif

/* -- the daemon's own memory: dies with it */
byte pending[2] = 0; /* faults read and not answered, by place; more than two add nothing */
bool unapplied = false;
bool batch = false;  /* a batch is in flight */
bool settling = false; /* its results are in, it may be read from the transfer area */
bool moved = false;
byte page = GONE;    /* the reader's buffer */
byte evictor_page = GONE; /* the evictor's */
bool up = false;     /* recovery is over */

bool crash = false, reader_down = false, evictor_down = false;

#define REGISTER(place) registered = registered || (place == here && mapped)
inline UNREGISTER(place) {
  d_step {
    if
    :: place == here -> registered = false; wake(place)
    :: else
    fi
  }
}

#define aged(v) v = (v == CUR -> OLD : v)
inline age() {
  aged(mem);
  aged(staging);
  aged(transfer);
  aged(object[0]);
  aged(object[1]);
  aged(page);
  aged(evictor_page)
}

inline wake(w_at) {
  if
  :: w_at == here -> fault[0] = 0; fault[1] = 0
  :: else
  fi
}

/* COPY and ZEROPAGE. */
inline fill(f_at, f_value, f_rc) {
  d_step {
    if
    :: changing -> f_rc = EAGAIN
    :: !changing && (f_at != here || !registered) -> f_rc = ENOENT
    :: !changing && f_at == here && registered && mem != GONE -> f_rc = EEXIST
    :: else -> f_rc = OK; mem = (f_value == GONE -> OLD : f_value); wake(f_at)
    fi
  }
}

inline unref(u_id) {
  d_step {
    assert(refs[u_id] > 0);
    refs[u_id]--;
    if
    :: refs[u_id] == 0 -> object[u_id] = GONE
    :: else
    fi
  }
}

/* ------------------------------------------------------------------ program */

/* One read or write. It waits in a fault for as long as there is nothing there. */
inline touch(t_who) {
  do
  :: atomic { mem != GONE ->
       if
       :: assert(mem == expected || (discarding && mem == ZERO)) /* a read */
       :: age(); mem = CUR; expected = CUR                       /* a write */
       fi;
       if
       :: t_who == 1 -> touching = false
       :: else
       fi;
       break }
  :: atomic { mem == GONE && !registered -> mem = ZERO }
  :: atomic { mem == GONE && registered -> fault[t_who] = 1;
       if
       :: t_who == 1 -> touching = true
       :: else
       fi }
     fault[t_who] == 0
  od
}

/* Or its threads are stopped (HAZARDS 5). */
#ifdef ONE_EVENT
#define room_for_events (inbox[0] == NOTHING)
#else
#define room_for_events (inbox[1] == NOTHING)
#endif

active proctype Program() {
end_idle:
  do
  :: touch(0)
#ifndef NO_DISCARD
  :: /* madvise(MADV_DONTNEED): the event, its reading, then the pages */
     atomic { room_for_events && registered ->
       queued = REMOVE; queued_at = here; changing = true; discarding = true; in_call = true }
     atomic { queued == NOTHING -> changing = false }
     atomic { age(); mem = GONE; expected = ZERO; discarding = false; in_call = false }
#endif
#ifndef NO_MREMAP
  :: atomic { room_for_events && registered && !touching ->
       queued = REMAP; queued_at = here; changing = true; here = 1 - here }
     atomic { queued == NOTHING -> changing = false }
#endif
#ifdef REGISTRATION
#ifndef NO_MUNMAP
  :: /* munmap, and something new in its place */
     atomic { room_for_events && registered ->
       age(); mem = GONE; expected = ZERO; registered = false; mapped = false;
       queued = UNMAP; queued_at = here; changing = true }
     atomic { queued == NOTHING -> changing = false }
     mapped = true
  :: /* of memory that is not registered no event comes */
     atomic { !registered -> age(); mem = GONE; expected = ZERO; mapped = false }
     mapped = true
#endif
#ifndef NO_MREMAP
  :: /* but mremap announces itself, and waits for the agent (HAZARDS 13) */
     atomic { !registered && layout != AGENT -> here = 1 - here }
#endif
#endif
  :: break
  od
}

#ifdef TWO_THREADS
active proctype Second() {
end_idle:
  do
  :: touch(1)
  :: break
  od
}
#endif

/* ------------------------------------------------------------------ agent */

#ifdef NO_LOCK
#define take_lock(side) skip
#define drop_lock(side) skip
#define lock_free true
#define holds(side) true
#else
#define take_lock(side) layout = side
#define drop_lock(side) layout = FREE
#define lock_free (layout == FREE)
#define holds(side) (layout == side)
#endif

active proctype Agent() {
end_idle:
  do
  :: command == POSTED ->
     if
     :: atomic { lock_free -> take_lock(AGENT) }
        if
#ifndef NO_EPOCH
        :: !epoch_same -> goto unlock
#endif
        :: else
        fi;
#ifdef REGISTRATION
#ifndef NO_REGISTER
        atomic { /* it passes over holes */
          if
          :: command_at == here && mapped -> registered = true
          :: else
          fi
        }
#endif
#if !defined(NO_RUN_PROBE) && !defined(NO_REGISTER)
        if
        :: !(command_at == here && mapped && registered) -> goto unlock
        :: else
        fi;
#endif
#endif
        d_step { /* MOVE: its source need not be registered */
          assert(holds(AGENT));
          if
          :: !changing && command_at == here && mem != GONE -> staging = mem; mem = GONE
          :: else
          fi
        }
        if
        :: staging != GONE ->
           transfer = staging;
           result_moved = true
        :: else
        fi;
unlock:
        atomic { assert(holds(AGENT)); drop_lock(AGENT); staging = GONE }
     :: true /* it did not get the lock in time */
     fi;
     command = DONE
  od
}

/* ------------------------------------------------------------------ daemon: reader */

/* Entry first, then the object. Only the reader does this to an entry that is not OUT. */
inline clear(c_at) {
  atomic {
    o = entry[c_at];
    entry[c_at] = E_NONE
  }
  if
  :: o >= E_OBJ -> unref(o - E_OBJ)
  :: else
  fi;
  o = 0
}

#define event_to_read (queued != NOTHING && inbox[1] == NOTHING)
#define fault_to_read (fault[0] == 1 || fault[1] == 1)

inline read_fault(who) {
  if
  :: fault[who] == 1 -> fault[who] = 2; pending[here] = (pending[here] < 2 -> pending[here] + 1 : 2)
  :: else
  fi
}

/* read(2) writes straight into the inbox. */
inline read_messages() {
  d_step { lock_free && (event_to_read || (queued == NOTHING && fault_to_read)) ->
    read_fault(0);
    read_fault(1);
    if
    :: queued != NOTHING ->
       take_lock(DAEMON);
       if
       :: inbox[0] == NOTHING -> inbox[0] = queued; inbox_at[0] = queued_at
       :: else -> inbox[1] = queued; inbox_at[1] = queued_at
       fi;
       queued = NOTHING; queued_at = 0; o = 1
    :: else
    fi
  }
  if
  :: o == 1 ->
     unapplied = true; /* first: the evictor looks at it after the epoch */
     epoch_same = false;
     d_step { assert(holds(DAEMON)); drop_lock(DAEMON); o = 0 }
  :: else
  fi
}

inline clear_first_of_inbox() {
  d_step { inbox[0] = inbox[1]; inbox_at[0] = inbox_at[1]; inbox[1] = NOTHING; inbox_at[1] = 0 }
}

inline apply_remove() {
  atomic { inbox[0] == REMOVE -> at = inbox_at[0] }
#ifdef INBOX_FIRST
  clear_first_of_inbox();
#endif
#ifndef NO_QUARANTINE
  quarantine[at] = true;
#endif
  clear(at);
#ifndef INBOX_FIRST
  clear_first_of_inbox();
#endif
  at = 0
}

inline apply_unmap() {
  atomic { inbox[0] == UNMAP && !changing -> at = inbox_at[0] }
  clear(at);
  clear_first_of_inbox();
  at = 0
}

/* With no batch in flight: no entry is OUT. */
#ifdef REMAP_IN_FLIGHT
#define at_rest true
#else
#define at_rest (!batch)
#endif
inline apply_remap() {
  atomic { inbox[0] >= REMAP && !changing && at_rest -> at = inbox_at[0] }
  if
#ifndef REPLAY_CLEARS
  :: inbox[0] == REMAP_CLEARED
#endif
  :: else -> clear(1 - at); inbox[0] = REMAP_CLEARED
  fi;
  if
  :: entry[at] == E_NONE
  :: entry[at] != E_NONE && entry[at] == entry[1 - at] -> clear(at) /* half done before a crash */
  :: else -> entry[1 - at] = entry[at]; entry[at] = E_NONE
  fi;
  clear_first_of_inbox();
  at = 0
}

#define answered(where) pending[where] = (pending[where] > 0 -> pending[where] - 1 : 0)

/* A fault, or without one: read-ahead, restore. */
inline answer_evicted(a_at) {
  d_step { at = a_at; id = entry[at] - E_OBJ; page = object[id] }
#ifdef FREE_FIRST
  unref(id);
#endif
  fill(at, page, rc);
  if
  :: rc == EAGAIN
  :: rc == ENOENT -> wake(at); answered(at) /* an event says more */
  :: else ->
     entry[at] = E_NONE;
#ifndef FREE_FIRST
     unref(id);
#endif
     d_step { if :: rc == EEXIST -> wake(at) :: else fi; answered(at) }
  fi;
  d_step { at = 0; id = 0; rc = 0; page = GONE }
}

inline answer_none(a_at) {
  at = a_at;
#ifndef ZERO_WITHOUT_LOCK
  atomic { lock_free -> take_lock(DAEMON) }
  if
  :: entry[at] == E_NONE ->
#endif
     fill(at, ZERO, rc);
     d_step {
       if
       :: rc == EAGAIN
       :: else -> wake(at); answered(at)
       fi
     }
#ifndef ZERO_WITHOUT_LOCK
  :: else
  fi;
  d_step { assert(holds(DAEMON)); drop_lock(DAEMON) }
#endif
  d_step { at = 0; rc = 0 }
}

/* The entry is WANTED: from here only the reader changes it, or the evictor while events wait. */
inline rescue(a_at) {
  d_step { at = a_at; page = transfer }
  if
  :: entry[at] != E_WANTED
  :: else ->
     fill(at, page, rc);
     if
     :: rc == EAGAIN
     :: rc == ENOENT -> wake(at); answered(at)
     :: else ->
        atomic {
          if
          :: entry[at] == E_WANTED -> entry[at] = E_NONE
          :: else -> clear(at)
          fi
        }
        d_step { wake(at); answered(at) }
     fi
  fi;
  d_step { at = 0; rc = 0; page = GONE }
}

/* Of memory of which nothing is out, when the evictor has asked for it. A change that is under way
 * may bring something there. */
inline unregister() {
  atomic { wish && inbox[0] == NOTHING && lock_free -> take_lock(DAEMON); wish = false;
    if
    :: at = here
#ifndef NO_MREMAP
    :: at = 1 - here /* something else is there, that mremap may replace */
#endif
    fi }
  if
#ifdef NO_PROBE
  :: entry[at] == E_NONE ->
     UNREGISTER(at)
#else
  :: entry[at] == E_NONE && !changing ->
#ifndef NO_NOTE
     d_step { noted = true; noted_at = at }
#endif
     UNREGISTER(at);
     if
     :: changing -> REGISTER(at)
     :: else
     fi;
     d_step { noted = false; noted_at = 0 }
#endif
  :: else
  fi;
  d_step { assert(holds(DAEMON)); drop_lock(DAEMON); at = 0 }
}

/* Of a place whose entry is OUT while no command is posted: it came through, or it never left. */
inline resolve(r_at) {
  if
  :: entry[r_at] == E_OUT || entry[r_at] == E_WANTED ->
     if
#ifdef PRESENT_FIRST
     :: here == r_at && mem != GONE -> entry[r_at] = E_NONE
     :: command != IDLE && !(here == r_at && mem != GONE) -> entry[r_at] = E_OUT
#else
     :: command != IDLE -> entry[r_at] = E_OUT /* in flight: taken up as it is */
#endif
     :: command == IDLE && here == r_at && mem != GONE -> entry[r_at] = E_NONE
     :: else ->
        if
        :: result_moved ->
           d_step {
             entry[r_at] = E_OUT; command_at = r_at;
             batch = true; settling = true; moved = true
           }
        :: else -> entry[r_at] = E_NONE
        fi
     fi
  :: entry[r_at] >= E_OBJ && here == r_at && mem != GONE -> entry[r_at] = E_NONE /* the page won */
  :: else
  fi
}

inline recover() {
  /* Before the lock: its dead holder may have read an event that the agent's command knows nothing
   * of. */
#ifndef NO_BUMP
  epoch_same = false;
#endif
#ifdef REGISTRATION
  if
  :: noted -> REGISTER(noted_at); noted = false
  :: else
  fi;
#endif
  if
#ifdef CLEAR_EVERY_LOCK
  :: layout != FREE -> drop_lock(DAEMON)
#else
  :: layout == DAEMON -> drop_lock(DAEMON)
#endif
  :: else
  fi;
  resolve(0);
  resolve(1);
  /* What no entry names is garbage. */
  d_step {
    refs[0] = (entry[0] == E_OBJ) + (entry[1] == E_OBJ);
    refs[1] = (entry[0] == E_OBJ + 1) + (entry[1] == E_OBJ + 1);
    if :: refs[0] == 0 -> object[0] = GONE :: else fi;
    if :: refs[1] == 0 -> object[1] = GONE :: else fi
  }
  d_step {
    batch = batch || command != IDLE;
    unapplied = inbox[0] != NOTHING;
#ifndef NO_WAKE
    fault[0] = 0;
    fault[1] = 0;
#endif
    up = true
  }
}

/* Events that were read come first. (While others wait to be read, or a change is under way, an
 * answer would be EAGAIN: not tried here, so that nobody turns in circles.) */
#ifdef ANSWER_FIRST
#define may_act !changing
#else
#define may_act (inbox[0] == NOTHING && !changing)
#endif
#define may_answer(where) (may_act && pending[where] > 0)

active proctype Reader() {
  byte o = 0, rc = 0;
  bit at = 0, id = 0;
again:
  {
    recover();
end_idle:
    do
    :: read_messages()
    :: apply_remove()
    :: apply_remap()
#ifdef REGISTRATION
    :: apply_unmap()
    :: unregister()
#endif
    :: atomic { unapplied && inbox[0] == NOTHING -> unapplied = false }
    :: may_answer(0) && entry[0] == E_NONE && lock_free -> answer_none(0)
    :: may_answer(1) && entry[1] == E_NONE && lock_free -> answer_none(1)
    :: may_act && (pending[0] > 0 || here == 0) && entry[0] >= E_OBJ -> answer_evicted(0)
    :: may_act && (pending[1] > 0 || here == 1) && entry[1] >= E_OBJ -> answer_evicted(1)
    :: atomic { may_answer(0) && entry[0] == E_OUT -> entry[0] = E_WANTED }
    :: atomic { may_answer(1) && entry[1] == E_OUT -> entry[1] = E_WANTED }
    :: may_act && entry[0] == E_WANTED && settling && moved -> rescue(0)
    :: may_act && entry[1] == E_WANTED && settling && moved -> rescue(1)
    od
  } unless { crash };
  d_step { o = 0; rc = 0; at = 0; id = 0; reader_down = true }
  !reader_down;
  goto again
}

/* ------------------------------------------------------------------ daemon: evictor */

/* Wanted pages are the reader's, but while events wait. */
#define may_publish \
  (entry[command_at] == E_OUT || (entry[command_at] == E_WANTED && unapplied))

/* By compare-and-swap. */
inline publish() {
  evictor_page = transfer;
#ifdef TRANSFER_FIRST
  transfer = GONE;
#endif
  d_step {
    assert(refs[0] == 0 || refs[1] == 0);
    id = (refs[0] == 0 -> 0 : 1);
    refs[id] = 1
  }
#ifndef ENTRY_FIRST
  object[id] = evictor_page;
#endif
  if
#ifdef BLIND_PUBLISH
  :: true -> entry[command_at] = E_OBJ + id
#endif
  :: atomic { may_publish -> entry[command_at] = E_OBJ + id }
#ifdef ENTRY_FIRST
     object[id] = evictor_page
#endif
  :: else -> unref(id)
  fi;
  d_step { id = 0; evictor_page = GONE }
}

/* What nobody looks at any more has one value, for fewer states. (The result stays where a recovery
 * can see it, if the rule that makes that harmless is taken out.) */
inline end_batch() {
  d_step {
    command_at = 0; epoch_same = false; id = 0;
#ifndef STALE_RESULTS
    result_moved = false;
#endif
    settling = false; moved = false; batch = false
  }
}

#define is_out (entry[command_at] == E_OUT || entry[command_at] == E_WANTED)

active proctype Evictor() {
  bit id = 0;
again:
  {
    up;
end_idle:
    do
    :: atomic { !batch -> batch = true }
       epoch_same = true; /* the command's epoch: read before anything is looked at */
       d_step {
         if
         :: !unapplied && mem != GONE && entry[here] == E_NONE && !quarantine[here] ->
            command_at = here;
#ifndef STALE_RESULTS
            result_moved = false; /* before an entry is OUT: a recovery goes by it */
#endif
            id = 1
         :: else
         fi
       }
       if
       :: atomic { id == 1 && entry[command_at] == E_NONE -> entry[command_at] = E_OUT; id = 0 }
       :: else -> goto give_up
       fi;
#ifdef STALE_RESULTS
       result_moved = false;
#endif
       command = POSTED;
       goto more;
give_up:
       skip; /* no jump into a d_step */
       end_batch();
more:
       skip
    :: batch && !settling && command == DONE ->
       d_step { moved = result_moved; settling = true }
       command = IDLE
    :: batch && settling && !moved ->
       atomic {
         if
         :: is_out -> entry[command_at] = E_NONE
         :: else
         fi
       }
       end_batch()
    :: batch && settling && moved && may_publish ->
       publish()
    :: /* no room in the pool: it goes back */
       atomic { batch && settling && moved && entry[command_at] == E_OUT ->
         entry[command_at] = E_WANTED }
    :: batch && settling && moved && !is_out ->
       transfer = GONE;
       end_batch()
    :: atomic { quarantine[0] && !in_call -> quarantine[0] = false }
    :: atomic { quarantine[1] && !in_call -> quarantine[1] = false }
#ifdef REGISTRATION
    :: wish = true
#endif
    :: !batch -> goto retired
    od;
retired:
end_retired:
    false
  } unless { crash };
  d_step { id = 0; evictor_down = true }
  !evictor_down;
  goto again
}

/* ------------------------------------------------------------------ the daemon's deaths */

active proctype Death() {
  byte left = CRASHES;
end_idle:
  do
  :: left > 0 ->
     left--;
     crash = true;
     reader_down && evictor_down;
     d_step {
       pending[0] = 0; pending[1] = 0;
       unapplied = false; batch = false; settling = false; moved = false;
#ifdef REGISTRATION
       wish = false;
#endif
       page = GONE; evictor_page = GONE; up = false;
       reader_down = false; evictor_down = false;
       crash = false
     }
  :: break
  od
}

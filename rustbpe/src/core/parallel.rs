//! Work on several threads, which the caller can stop.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::error::{Error, Result};

/// Called now and then on the caller's own thread during long work; an error ends the work.
pub type Check<'a> = dyn FnMut() -> Result<()> + Send + 'a;

/// The number of threads to use; 0 asks for every core.
pub fn thread_count(threads: usize) -> usize {
    match threads {
        0 => thread::available_parallelism().map_or(1, |n| n.get()),
        n => n.min(1024),
    }
}

/// `work(state, job)` for each job in `0..jobs`, one thread for each state; results in the order of the jobs.
///
/// The calling thread only waits and calls `check`, because Python delivers signals to its main thread alone.
/// After the first error no further job is started.
pub fn parallel<S: Send, T: Send>(
    states: &mut [S],
    jobs: usize,
    check: &mut Check,
    work: impl Fn(&mut S, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let alone = states.len() == 1 || jobs <= 1;
    if let (Some(state), true) = (states.first_mut(), alone) {
        let mut results = Vec::with_capacity(jobs);
        for job in 0..jobs {
            check()?;
            results.push(work(state, job)?);
        }
        return Ok(results);
    }
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let mut results: Vec<Option<T>> = (0..jobs).map(|_| None).collect();
    thread::scope(|scope| {
        let (sender, receiver) = channel();
        let mut failure = None;
        for state in states.iter_mut().take(jobs) {
            let (sender, next, stop, work) = (sender.clone(), &next, &stop, &work);
            let worker = move || {
                while !stop.load(Ordering::Relaxed) {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    if job >= jobs || sender.send((job, work(state, job))).is_err() {
                        break;
                    }
                }
            };
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, worker) {
                failure = Some(Error::Io(error));
                break;
            }
        }
        drop(sender);
        loop {
            match receiver.recv_timeout(Duration::from_millis(50)) {
                Ok((job, Ok(result))) => results[job] = Some(result),
                Ok((_, Err(error))) => failure = failure.or(Some(error)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if failure.is_none() {
                failure = check().err();
            }
            if failure.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        failure.map_or(Ok(()), Err)
    })?;
    Ok(results.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_jobs() {
        for threads in [1, 2, 5] {
            let mut states = vec![(); threads];
            let squares = parallel(&mut states, 100, &mut || Ok(()), |_, job| Ok(job * job)).unwrap();
            assert_eq!(squares, (0..100).map(|job| job * job).collect::<Vec<_>>());
        }
        assert!(parallel(&mut [(); 2], 0, &mut || Ok(()), |_, _| Ok(())).unwrap().is_empty());
    }

    #[test]
    fn an_error_or_the_check_ends_the_work() {
        for threads in [1, 3] {
            let mut states = vec![(); threads];
            let fail = |_: &mut (), job| {
                if job == 7 { Err(Error::Invalid("seven".into())) } else { Ok(()) }
            };
            let error = parallel(&mut states, 1000, &mut || Ok(()), fail).unwrap_err();
            assert_eq!(error.to_string(), "seven");
            let stopped = parallel(&mut states, 1000, &mut || Err(Error::Stopped), |_, _| Ok(()));
            assert!(matches!(stopped, Err(Error::Stopped)));
        }
    }
}

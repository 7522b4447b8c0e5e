//! Measurements on workloads of ours: server and client are processes of their own, new for each round.

use std::process::Command;
use std::thread;

use anyhow::{Result, ensure};

use super::Plan;
use crate::comparison::{Comparison, Row, measure, pairs};
use crate::figures::Figures;
use crate::measure::{Running, client, workload};

/// Where server and client run.
#[derive(Clone, Copy)]
pub(super) enum Cpus {
    /// Each on a CPU of its own.
    Apart,
    /// Both on the same.
    One,
    /// Wherever the scheduler puts them, of the first two.
    Both,
}

/// A workload.
#[derive(Clone, Copy)]
pub(super) struct Own {
    /// `None` where the client needs none.
    pub server: Option<&'static str>,
    pub client: &'static str,
    /// Bytes of a message.
    pub size: usize,
    /// Connections of each client.
    pub connections: usize,
    /// Client processes.
    pub clients: usize,
    pub cpus: Cpus,
    /// Messages a second, where they are paced.
    pub rate: u32,
    /// From the first message on, on connections that begin all at once.
    pub cold: bool,
    /// So many times as long as others.
    pub longer: u64,
}

impl Own {
    /// One connection of 64-byte messages.
    pub(super) const fn new(server: &'static str, client: &'static str) -> Self {
        Self {
            server: Some(server),
            client,
            size: 64,
            connections: 1,
            clients: 1,
            cpus: Cpus::Apart,
            rate: 1,
            cold: false,
            longer: 1,
        }
    }

    /// Measures it.
    pub(super) fn measure(&self, rows: &[Row], plan: &Plan) -> Result<Vec<Comparison>> {
        measure(rows, plan.rounds, |preloaded| self.round(plan, preloaded))
    }

    /// Measures a client that tells both sides by itself, in one preloaded process: first all plain figures, then all others.
    pub(super) fn measure_both(&self, rows: &[Row], plan: &Plan) -> Result<Vec<Comparison>> {
        pairs(rows, plan.rounds, || {
            let mut plain = self.round(plan, true)?;
            let preloaded = plain.split_off(plain.len() / 2);
            Ok((plain, preloaded))
        })
    }

    fn round(&self, plan: &Plan, preloaded: bool) -> Result<Vec<Figures>> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("socket");
        let prepare = |name: &str, cpus: &[usize]| -> Result<Command> {
            let mut command = workload(name, &socket, cpus)?;
            if preloaded {
                plan.preload(&mut command, &socket);
            }
            command.args(["--size", &self.size.to_string()]);
            Ok(command)
        };
        let (of_server, of_client) = self.cpus.of();
        let server = self.server.map(|name| Running::server(prepare(name, of_server)?, &socket)).transpose()?;
        let start = || {
            let mut command = prepare(self.client, of_client)?;
            command.args(["--connections", &self.connections.to_string(), "--rate", &self.rate.to_string()]);
            command.args(["--milliseconds", &(plan.milliseconds * self.longer).to_string()]);
            if self.cold {
                command.arg("--cold");
            }
            if let Some(server) = &server {
                command.args(["--server", &server.id().to_string()]);
            }
            client(&mut command)
        };
        if self.clients == 1 {
            return start();
        }
        let ended: Vec<Result<_>> = thread::scope(|scope| {
            let clients: Vec<_> = (0..self.clients).map(|_| scope.spawn(start)).collect();
            clients.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let all = ended.into_iter().collect::<Result<Vec<_>>>()?;
        ensure!(all.iter().all(|one| one.len() == 1), "clients that run together tell one figure each");
        Ok(vec![Figures::together(&all.concat())])
    }
}

impl Cpus {
    fn of(self) -> (&'static [usize], &'static [usize]) {
        let two = thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        match self {
            Self::Apart if two => (&[1], &[0]),
            Self::Both if two => (&[0, 1], &[0, 1]),
            Self::One | Self::Apart | Self::Both => (&[0], &[0]),
        }
    }
}

// An informer on the configmaps of one namespace, made of client-go and nothing of ours: a second opinion on what a
// watch through the agent looks like. Prints one JSON object a line until it is ended.
//
//	{"event":"SYNCED","count":3}                              the first list is there
//	{"event":"ADD","name":"a","version":"12"}                 ADD, UPDATE, DELETE as handlers see them
//	{"event":"ERROR","message":"..."}                         a list or watch failed; it tries again by itself
//
// Streaming lists and CBOR are switched by client-go's own variables (KUBE_FEATURE_WatchListClient and others).
package main

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/signal"
	"sync"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

type line struct {
	Event   string `json:"event"`
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
	Count   int    `json:"count,omitempty"`
	Message string `json:"message,omitempty"`
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "where and with which credential")
	namespace := flag.String("namespace", "default", "whose configmaps")
	contentType := flag.String("content-type", "application/json", "media type of answers that is asked for first")
	flag.Parse()

	var mutex sync.Mutex
	out := json.NewEncoder(os.Stdout)
	say := func(one line) {
		mutex.Lock()
		defer mutex.Unlock()
		_ = out.Encode(one)
	}
	fail := func(err error) {
		say(line{Event: "FAILED", Message: err.Error()})
		os.Exit(1)
	}

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		fail(err)
	}
	config.ContentType = *contentType
	config.AcceptContentTypes = *contentType + ",application/json"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		fail(err)
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(*namespace))
	informer := factory.Core().V1().ConfigMaps().Informer()
	_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		say(line{Event: "ERROR", Message: err.Error()})
	})
	tell := func(event string, object any) {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		if one, ok := object.(*corev1.ConfigMap); ok {
			say(line{Event: event, Name: one.Name, Version: one.ResourceVersion})
		}
	}
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { tell("ADD", object) },
		UpdateFunc: func(_, object any) { tell("UPDATE", object) },
		DeleteFunc: func(object any) { tell("DELETE", object) },
	})
	if err != nil {
		fail(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	factory.Start(ctx.Done())
	if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		say(line{Event: "SYNCED", Count: len(informer.GetStore().List())})
	}
	<-ctx.Done()
}
